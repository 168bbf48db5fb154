"""`python -m trainer.evaluate`: what a LoRA does at every scale. See cli.py for the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from convert.errors import JobError, UsageError
from trainer.evaluate.cli import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the job failed, 2 bad usage, 130 stopped by the user (the same command goes on)."""
    try:
        settings, job = parse(argv)
        from trainer.evaluate.run import run

        return run(settings, job)
    except (JobError, UsageError) as error:
        print(f"trainer.evaluate: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("trainer.evaluate: stopped; the same command goes on with the pictures that are there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
