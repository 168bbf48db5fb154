"""`python -m trainer.study`: train and evaluate a table of recipes. See cli.py for the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from trainer.study.cli import parse
from trainer.terminal import command


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a row failed, 2 bad usage, 130 stopped by the user (the same command continues)."""

    def work() -> int:
        study, job = parse(argv)
        from trainer.study.run import run

        return run(study, job)

    return command("trainer.study", work, stopped="stopped; run the same command to continue")


if __name__ == "__main__":
    sys.exit(main())
