"""Binds a report's folder to the settings, data and weights that its pictures were drawn with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from convert.errors import FileError, JobError, UsageError
from convert.files import write_json
from convert.files.json_file import Json, read_object
from trainer.evaluate.cli import DATA_FLAGS
from trainer.evaluate.results import Report
from trainer.evaluate.settings import Settings
from trainer.recipe import Recipe, flag

CLAIM, IDENTITIES, REPORT, PAGE = "settings.json", "identities.json", "report.json", "index.html"


def check_claim(out: Path, settings: Settings, recipe: Recipe, digest: str) -> None:
    """Check that folder `out` is free or belongs to this evaluation, so that two are never mixed. Writes nothing.

    Raises:
        UsageError: it contains another evaluation, or is a file; the message lists the differences.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file; name a folder for the report")
    if not (out / CLAIM).exists():
        return
    mine, theirs = _claimed(settings, recipe, digest), read(out / CLAIM)
    changed = [f"{name if name == 'LoRA' else flag(name)} was {theirs.get(name)!r}, now {mine.get(name)!r}"
               for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
    if changed:
        raise UsageError(f"--out {out}: holds another report ({'; '.join(changed)}): name another folder, or "
                         "delete this one")


def claim(out: Path, settings: Settings, recipe: Recipe, digest: str) -> None:
    """Reserve `out` for this evaluation. `settings`: as given by the user, without the base's defaults."""
    place = out / CLAIM
    if not place.exists():
        write_json(place, _claimed(settings, recipe, digest))


def _claimed(settings: Settings, recipe: Recipe, digest: str) -> dict[str, Json]:
    claimed = {**settings.as_dict(), **{name: getattr(recipe, name) for name in (*DATA_FLAGS, "seed")}, "LoRA": digest}
    claimed["seed"] = [settings.seed, recipe.seed]
    found: dict[str, Json] = json.loads(json.dumps(claimed))
    return found


def bind(out: Path, found: dict[str, str]) -> None:
    """Record the base, drawings and judges behind the folder's numbers. JobError if they have changed since."""
    place = out / IDENTITIES
    known = read(place) if place.exists() else {}
    changed = [key for key in found if known.get(key, found[key]) != found[key]]
    if changed:
        raise JobError(f"{out}: the {' and the '.join(changed)} changed since this report began: give another --out, or delete "
                       "this folder")
    write_json(place, known | found)


def read(path: Path) -> Any:
    """A JSON object that this program wrote; its fields are not checked. JobError if it is damaged."""
    try:
        return read_object(path)
    except (OSError, FileError) as error:
        raise JobError(f"{error}: delete the folder {path.parent} to start over") from error


def finished(out: Path) -> Report | None:
    """The folder's report of a LoRA, if it is complete. UsageError if it holds one of a whole run."""
    if not ((out / REPORT).exists() and (out / PAGE).exists()):
        return None
    report: Report = read(out / REPORT)
    if "groups" not in report:
        raise UsageError(f"{out}: holds the report of a whole run: name another folder, or one of its step-… folders")
    return report
