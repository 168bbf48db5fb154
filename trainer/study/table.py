"""A study's table: a TOML file of rows that say only what differs, read and checked."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomllib

from convert.errors import JobError, UsageError
from trainer.evaluate.settings import Settings
from trainer.recipe import Recipe

TABLES = Path(__file__).parent / "tables"
_FIELDS = {f.name: f.default for f in dataclasses.fields(Recipe)}
_SETTINGS = {f.name: f.default for f in dataclasses.fields(Settings)}
_TOP = {"question": "", "axis": "", "checkpoints": 0, "recipe": {}, "evaluate": {}, "row": []}


@dataclass(frozen=True)
class Row:
    """One line of the result: `recipe` trained, the LoRA of optimizer step `step` (0: the last) measured on base `on`."""

    name: str
    recipe: Recipe
    on: str = ""
    step: int = 0

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "row"


@dataclass(frozen=True)
class Study:
    """A table, understood. checkpoints: of the only row's run, how many to compare; 0: rows are compared."""

    question: str
    axis: str
    rows: list[Row]
    checkpoints: int
    evaluate: dict[str, Any]
    """fields of the evaluation's `Settings`"""

    def with_steps(self, total: int) -> Study:
        """A study of checkpoints with its rows: optimizer steps evenly up to `total`."""
        only, every = self.rows[0], self.checkpoint_every(total)
        steps = [*range(every, total, every), total]
        return replace(self, rows=[replace(only, name=f"step {step}", step=step) for step in steps])

    def checkpoint_every(self, total: int) -> int:
        return max(1, -(-total // self.checkpoints))

    def x(self, row: Row) -> float | None:
        """The row's place on a numeric axis: its step, or the field of the recipe that `axis` names."""
        if row.step:
            return float(row.step)
        value = getattr(row.recipe, self.axis, None)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def known_tables() -> list[str]:
    return sorted(path.stem for path in TABLES.glob("*.toml"))


def read_table(name: str, preset: dict[str, Any], changed: dict[str, Any]) -> Study:
    """The study in file `name`, or in the table of that name that comes with the program.

    A recipe is the paper's, under `preset`, under the table's [recipe], under `changed` (the command line), under the row.

    Raises:
        UsageError: there is none, or a key or value in it makes no sense; the message names row and key.
        JobError: it is no TOML.
    """
    path = TABLES / f"{name}.toml" if name in known_tables() else Path(name)
    if not path.is_file():
        raise UsageError(f"{name}: is no TOML file, nor one of the studies {', '.join(known_tables())}")
    try:
        loaded = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: is no TOML ({' '.join(str(error).split())}): correct it") from error
    _check(loaded, _TOP, f"{path}")
    _check(loaded.get("recipe", {}), _FIELDS, f"{path} [recipe]")
    _check(loaded.get("evaluate", {}), _SETTINGS, f"{path} [evaluate]")
    shared = {**preset, **loaded.get("recipe", {}), **changed}
    rows = [_row(entry, shared, loaded.get("axis", ""), f"{path} row {number}")
            for number, entry in enumerate(loaded.get("row") or [{}], 1)]
    checkpoints = loaded.get("checkpoints", 0)
    if checkpoints < 0 or (checkpoints and len(rows) > 1):
        raise UsageError(f"{path}: checkpoints are those of one run: expected a number and at most one [[row]]")
    if not checkpoints and len(rows) < 2:
        raise UsageError(f"{path}: a study compares rows: expected two or more [[row]], or checkpoints = a number")
    slugs = [row.slug for row in rows]
    twice = next((row.name for row in rows if slugs.count(row.slug) > 1), None)
    if twice:
        raise UsageError(f"{path}: two rows are called {twice!r}: give them names that differ")
    return Study(loaded.get("question") or path.stem, loaded.get("axis", ""), rows, checkpoints, loaded.get("evaluate", {}))


def _row(entry: dict[str, Any], shared: dict[str, Any], axis: str, where: str) -> Row:
    _check(entry, {**_FIELDS, "name": "", "on": ""}, where)
    own = {key: value for key, value in entry.items() if key not in ("name", "on")}
    name = entry.get("name") or ", ".join(f"{key} {value}" for key, value in own.items()) or entry.get("on") or "run"
    try:
        return Row(name, Recipe(**{**shared, **own}), entry.get("on", ""))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _check(entry: dict[str, Any], known: dict[str, Any], where: str) -> None:
    for key, value in entry.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; expected some of {', '.join(known)}")
        kind = type(known[key])
        fits = isinstance(value, list) if kind is tuple else type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            wanted = {dict: "a table", list: "[[row]] tables", tuple: "a list", bool: "true or false", int: "a whole number",
                      float: "a number", str: "text in quotes"}[kind]  # fmt: skip
            raise UsageError(f"{where}: {key} is {value!r}; expected {wanted}")
