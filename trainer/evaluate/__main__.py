"""`python -m trainer.evaluate`: measure a LoRA at every scale. See cli.py for the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.evaluate.cli import parse
from trainer.terminal import command


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 the job failed, 2 bad usage, 130 stopped by the user (the same command continues)."""

    def work() -> int:
        settings, job = parse(argv)
        from trainer.evaluate.run import run

        return run(settings, job)

    return command("trainer.evaluate", work, stopped="stopped; run the same command to continue with the finished pictures")


if __name__ == "__main__":
    sys.exit(main())
