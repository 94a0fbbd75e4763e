"""The commands of the command line, one file a group. What takes seconds to import, each imports when it runs."""
