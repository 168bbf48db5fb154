"""The two errors a command line turns into one line on stderr and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable


class JobError(Exception):
    """The request was understood and could not be done: a broken file, a full disk, a module that fits nothing.

    The message is one line that names the file, says what was expected and what to do.
    """

    exit_code = 1


class UsageError(Exception):
    """The request itself makes no sense: an unknown flag value, two flags that exclude each other.

    The message is one line that names the flag or argument and says what is allowed.
    """

    exit_code = 2


def exit_status(name: str, run: Callable[[], int], *, stopped: str = "stopped") -> int:
    """What `run` returns; the two errors, the system's own and Ctrl-C as one line of `name` on stderr and an exit status."""
    try:
        return run()
    except (JobError, UsageError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{name}: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        return JobError.exit_code
    except KeyboardInterrupt:
        print(f"{name}: {stopped}", file=sys.stderr)
        return 130
