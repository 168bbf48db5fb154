"""The work of install.py: hosts, records, placing. Standard library only; its own process, never a host's."""


class UsageError(Exception):
    """The command cannot be carried out as it was given: one line, exit code 2."""


class JobError(Exception):
    """The command was right and could not be carried out: one line, exit code 1."""
