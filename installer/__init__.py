"""Implements install.py: hosts, records, installation steps. Standard library only; never loaded by a host."""


class UsageError(Exception):
    """The command is invalid: one line, exit code 2."""


class JobError(Exception):
    """A valid command failed: one line, exit code 1."""
