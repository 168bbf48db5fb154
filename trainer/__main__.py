"""`python -m trainer`: train a LoRA and write it. See trainer/cli.py for the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.cli import parse
from trainer.terminal import command


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the job failed, 2 bad usage, 130 stopped by the user (saved; the same command continues)."""

    def work() -> int:
        recipe, job = parse(argv)
        if job.dry_run:
            from trainer.dry_run import dry_run

            return dry_run(recipe, job)
        from trainer.train import run

        return run(recipe, job)

    return command("trainer", work, stopped="stopped; run the same command to continue from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
