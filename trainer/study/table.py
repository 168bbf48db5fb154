"""Reads and checks a study's table: a TOML file whose rows list only the differences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import tomllib

from convert.errors import JobError, UsageError
from trainer.evaluate.settings import Settings
from trainer.presets import over
from trainer.recipe import Fields, Recipe, flag

TABLES = Path(__file__).parent / "tables"
EQUAL = ("epochs", "steps")
_FIELDS = {f.name: f.default for f in dataclasses.fields(Recipe)}
_SETTINGS = {f.name: f.default for f in dataclasses.fields(Settings)}
_TOP = {"question": "", "axis": "", "checkpoints": 0, "equal": "", "repeats": 0, "recipe": {}, "evaluate": {}, "row": []}


@dataclass(frozen=True)
class Row:
    """One LoRA to measure: `recipe` trained, at optimizer step `step` (0: the last), measured on base `on` ("": its own)."""

    name: str
    recipe: Recipe
    on: str = ""
    step: int = 0
    cell: str = ""
    """its line in the result, shared by several seeds; "" for the name"""
    series: str = ""
    """the table's row that it is a checkpoint of; "" if there is only one"""

    @property
    def line(self) -> str:
        return self.cell or self.name

    @property
    def slug(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "row"


@dataclass(frozen=True)
class Study:
    """A table that was read and checked."""

    question: str
    axis: str
    rows: list[Row]
    checkpoints: int
    """how many checkpoints of every row's run to compare; 0: only the last"""
    evaluate: Fields
    """fields of the evaluation's `Settings`"""
    shared: Recipe = field(default_factory=Recipe)
    """of all rows"""
    equal: str = "epochs"
    """what rows with different amounts of data have in common"""
    repeats: int = 1
    """how many seeds every row is trained with, starting from the recipe's"""
    notes: list[str] = field(default_factory=list)

    def expanded(self, total_steps: Callable[[Recipe], int]) -> Study:
        """The study with one row for every checkpoint and seed. `total_steps`: optimizer steps of a recipe on its data."""
        rows = self.rows
        if self.equal == "steps":
            steps = total_steps(self.shared)
            rows = [replace(row, recipe=replace(row.recipe, steps=steps)) for row in rows]
        if self.checkpoints:
            rows = [_at_step(row, step, len(rows) > 1) for row in rows for step in self.steps(total_steps(row.recipe))]
        if self.repeats > 1:
            rows = [_with_seed(row, row.recipe.seed + k) for row in rows for k in range(self.repeats)]
        return replace(self, rows=rows)

    def steps(self, total: int) -> list[int]:
        """The checkpoints' optimizer steps, evenly up to `total`."""
        every = self.checkpoint_every(total)
        return [*range(every, total, every), total]

    def checkpoint_every(self, total: int) -> int:
        return max(1, -(-total // self.checkpoints))

    def x(self, row: Row) -> float | None:
        """The row's position on a numeric axis: its step, or the recipe's field named by `axis`."""
        if row.step:
            return float(row.step)
        value = getattr(row.recipe, self.axis, None)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _at_step(row: Row, step: int, several: bool) -> Row:
    name = f"{row.name}, step {step}" if several else f"step {step}"
    return replace(row, name=name, step=step, series=row.name if several else "")


def _with_seed(row: Row, seed: int) -> Row:
    """The same row trained with another seed on the same data."""
    recipe = replace(row.recipe, seed=seed, data_seed=row.recipe.data_seed_used)
    return replace(row, recipe=recipe, name=f"{row.name}, seed {seed}", cell=row.name)


def known_tables() -> list[str]:
    return sorted(path.stem for path in TABLES.glob("*.toml"))


def read_table(name: str, preset: Fields, changed: Fields, *, equal: str = "", repeats: int = 0) -> Study:
    """The study in file `name`, or in the built-in table of that name.

    A recipe starts from the paper's; then `preset`, the table's [recipe], `changed` (the command line) and the row override it.
    equal, repeats: the command line's values, which override the table's; "" and 0 if they are not given.

    Raises:
        UsageError: there is none, or a key or value in it is invalid; the message names row and key.
        JobError: it is not TOML.
    """
    path = TABLES / f"{name}.toml" if name in known_tables() else Path(name)
    loaded = _load(path, name)
    shared = over(over(preset, loaded.get("recipe", {})), changed)
    rows = [_row(entry, shared, f"{path} row {number}") for number, entry in enumerate(loaded.get("row") or [{}], 1)]
    checkpoints, repeats = loaded.get("checkpoints", 0), repeats or loaded.get("repeats", 0) or 1
    if checkpoints < 0 or repeats < 1:
        raise UsageError(f"{path}: checkpoints and repeats: expected 1 or more")
    if not checkpoints and len(rows) < 2 and repeats < 2:
        raise UsageError(f"{path}: a study compares rows: expected two or more [[row]], checkpoints or repeats")
    slugs = [row.slug for row in rows]
    twice = next((row.name for row in rows if slugs.count(row.slug) > 1), None)
    if twice:
        raise UsageError(f"{path}: two rows are called {twice!r}: give them different names")
    equal = equal or loaded.get("equal", "") or "epochs"
    if equal not in EQUAL:
        raise UsageError(f"{path}: equal is {equal!r}; expected {' or '.join(EQUAL)}")
    return Study(loaded.get("question") or path.stem, loaded.get("axis", ""), rows, checkpoints, loaded.get("evaluate", {}),
                 Recipe(**shared), equal, repeats, _overruled(loaded.get("row") or [], rows, changed))


def _load(path: Path, name: str) -> Fields:
    if not path.is_file():
        raise UsageError(f"{name}: neither a TOML file nor one of the studies {', '.join(known_tables())}")
    try:
        loaded = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: is not TOML ({' '.join(str(error).split())}): correct it") from error
    _check(loaded, _TOP, f"{path}")
    _check(loaded.get("recipe", {}), _FIELDS, f"{path} [recipe]")
    _check(loaded.get("evaluate", {}), _SETTINGS, f"{path} [evaluate]")
    values: Fields = {key: tuple(value) if isinstance(value, list) else value
                      for key, value in loaded.get("evaluate", {}).items()}
    try:
        Settings(**values)
    except UsageError as error:
        raise UsageError(f"{path} [evaluate]: {error}") from error
    return loaded


def _overruled(entries: list[Fields], rows: list[Row], changed: Fields) -> list[str]:
    """A line for every command-line flag that a row's own value overrides."""
    return [f"row {row.name!r} has its own {key}, {entry[key]!r}, which overrides {flag(key)} {changed[key]}"
            for entry, row in zip(entries, rows, strict=False)
            for key in entry if key in changed and changed[key] != entry[key]]


def _row(entry: Fields, shared: Fields, where: str) -> Row:
    _check(entry, {**_FIELDS, "name": "", "on": ""}, where)
    own = {key: value for key, value in entry.items() if key not in ("name", "on")}
    name = entry.get("name") or ", ".join(f"{key} {value}" for key, value in own.items()) or entry.get("on") or "run"
    try:
        return Row(name, Recipe(**over(shared, own)), entry.get("on", ""))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _check(entry: Fields, known: Fields, where: str) -> None:
    for key, value in entry.items():
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}; expected some of {', '.join(known)}")
        kind = type(known[key])
        fits = isinstance(value, list) if kind is tuple else type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            wanted = {dict: "a table", list: "[[row]] tables", tuple: "a list", bool: "true or false", int: "a whole number",
                      float: "a number", str: "text in quotes"}[kind]  # fmt: skip
            raise UsageError(f"{where}: {key} is {value!r}; expected {wanted}")
