"""Settings that every command makes before its work."""

from __future__ import annotations

import subprocess
import sys

import pytest

from trainer import terminal


@pytest.mark.parametrize(("given", "after"), [
    ({}, {"GOMP_SPINCOUNT": "1000"}),
    ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"})])  # fmt: skip
def test_waiting_threads_sleep_unless_the_user_sets_how_they_wait(given, after, monkeypatch) -> None:
    monkeypatch.setattr(terminal.os, "environ", dict(given))
    seen = []
    assert terminal.command("x", lambda: seen.append(dict(terminal.os.environ)) or 0) == 0
    assert seen == [after]


def test_it_is_set_before_torch_is_loaded() -> None:
    """OpenMP reads it once, when torch loads it."""
    code = "import sys, trainer.__main__, trainer.evaluate.__main__, trainer.sample.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
