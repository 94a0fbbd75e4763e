"""The commands of `pad`. Each reads its options, makes one call into the library, and prints the result.

A command imports slow modules (torch, numpy) inside its function, so that `--help` is fast. Code that Python users need
too belongs into the library.
"""
