"""A base for complete trainings in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.small_run import write_base


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The narrowest base of SD1.5's layout, with random weights. Read-only."""
    return write_base(tmp_path_factory.mktemp("small") / "base")
