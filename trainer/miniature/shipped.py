"""Paths of the miniature's files in the package."""

from pathlib import Path

_HERE = Path(__file__).parent
NETWORKS = _HERE / "weights" / "narrow.safetensors.gz"
JUDGE = _HERE / "weights" / "judge.safetensors"
DRAWINGS = _HERE / "drawings.npz"
