"""install.py as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = ".scribble-lora-install.json"
MODULE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def install(*arguments: object, script: Path = ROOT / "install.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *map(str, arguments)], capture_output=True, text=True, timeout=60)
