"""`python -m trainer.study`: train and evaluate a table of recipes. See cli.py for the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from convert.errors import JobError, UsageError
from trainer.study.cli import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a row failed, 2 bad usage, 130 stopped by the user (the same command goes on)."""
    try:
        study, job = parse(argv)
        from trainer.study.run import run

        return run(study, job)
    except (JobError, UsageError) as error:
        print(f"trainer.study: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trainer.study: stopped; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
