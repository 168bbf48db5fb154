"""`python -m trainer`: teach a style, write the LoRA. See trainer/cli.py for the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.cli import parse
from trainer.terminal import command


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the job failed, 2 bad usage, 130 stopped by the user (saved; the same command goes on)."""

    def work() -> int:
        recipe, job = parse(argv)
        if job.dry_run:
            from trainer.dry_run import dry_run

            return dry_run(recipe, job)
        from trainer.train import run

        return run(recipe, job)

    return command("trainer", work, stopped="stopped; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    sys.exit(main())
