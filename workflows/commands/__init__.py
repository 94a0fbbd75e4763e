"""The command line: one file for each command or group. Options in, one call, a table or a line out.

What takes seconds to import, each command imports when it runs. Logic that Python users want too belongs below.
"""
