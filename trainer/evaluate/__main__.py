"""`python -m trainer.evaluate`: what a LoRA does at every scale. See cli.py for the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.evaluate.cli import parse
from trainer.terminal import command


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the job failed, 2 bad usage, 130 stopped by the user (the same command goes on)."""

    def work() -> int:
        settings, job = parse(argv)
        from trainer.evaluate.run import run

        return run(settings, job)

    return command("trainer.evaluate", work, stopped="stopped; the same command goes on with the pictures that are there")


if __name__ == "__main__":
    sys.exit(main())
