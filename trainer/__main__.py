"""`python -m trainer`: teach a style, write the LoRA. See trainer/cli.py for the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from convert.errors import JobError, UsageError
from trainer.cli import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the job failed, 2 bad usage, 130 stopped by the user (saved; the same command goes on)."""
    try:
        recipe, job = parse(argv)
        from trainer.job import run

        return run(recipe, job)
    except (JobError, UsageError) as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trainer: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
