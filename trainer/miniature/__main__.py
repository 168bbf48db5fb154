"""Writes the miniature Stable Diffusion as files that every host loads as Stable Diffusion 1.5.

  python -m trainer.miniature --out miniature.safetensors     one file, LDM names, float16, 2.1 GB
  python -m trainer.miniature --diffusers DIR                 a diffusers pipeline folder
  python -m trainer.miniature --words                         the words it can draw
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from convert.errors import exit_status


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m trainer.miniature", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="write the checkpoint there; it must not exist")
    what.add_argument("--diffusers", type=Path, metavar="DIR", help="write the pipeline folder there; it must not exist")
    what.add_argument("--words", action="store_true", help="list the words it knows, one a line")
    p.add_argument("--networks", type=Path, metavar="FILE", help="narrow networks to widen (default: those that ship)")
    return p


def run(options: argparse.Namespace) -> int:
    from trainer.miniature.checkpoint import write_checkpoint, write_diffusers
    from trainer.miniature.packed import read_narrow
    from trainer.miniature.shipped import NETWORKS

    narrow = read_narrow(options.networks or NETWORKS)
    if options.words:
        print("\n".join(narrow.words))
    elif options.out:
        write_checkpoint(options.out, narrow)
        print(f"{options.out}: Stable Diffusion 1.5 in shape, {options.out.stat().st_size / 1e9:.1f} GB; draw at 128 x 128")
    else:
        write_diffusers(options.diffusers, narrow)
        print(f"{options.diffusers}: a diffusers folder; draw at 128 x 128")
    return 0


def main() -> int:
    options = parser().parse_args()
    return exit_status("python -m trainer.miniature", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
