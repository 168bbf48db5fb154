"""Every option of training as a control of the page, made from the same parser as `--help`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from trainer import cli

OWN = {"--out", "--run", "--data", "--preset", "--demo", "--base", "--trigger", "--samples", "--sample-every",
       "--sample-prompts", "--dry-run", "--overwrite", "--contact-sheet", "--cache", "--save-to", "--recipe", "--data-url",
       "--help"}  # fmt: skip
"""Flags for which the page has a separate control, or which it sets itself."""
PATHS = ("--tokenizer", "--vae", "--init")
"""Flags whose values are files, which must be in the folders that the user named."""
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Option:
    """One flag of the command line."""

    flag: str
    help: str
    choices: tuple[str, ...]
    """empty: any text"""
    group: str


def options() -> list[Option]:
    """The flags of `python -m trainer` in the order of its help, without those in `OWN`."""
    parser = cli.parser()
    return [Option(action.option_strings[0], (action.help or "").replace("%%", "%"), _choices(action), group.title or "")
            for group in parser._action_groups for action in group._group_actions
            if action.option_strings and not OWN & set(action.option_strings)]


def arguments(values: Mapping[str, str]) -> list[str]:
    """The command line of `values`, by flag; "" leaves an option to the preset. Values cannot be mistaken for flags."""
    argv = []
    known = {option.flag: option for option in options()}
    for flag, value in values.items():
        value = value.strip()
        if not value:
            continue
        if known[flag].choices == (YES, NO):
            argv.append(flag if value == YES else f"--no-{flag[2:]}")
        else:
            argv.append(f"{flag}={value}")
    return argv


def _choices(action: argparse.Action) -> tuple[str, ...]:
    if action.nargs == 0:
        return (YES, NO)
    if action.choices:
        return tuple(map(str, action.choices))
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    return tuple(metavar[1:-1].split(",")) if metavar.startswith("{") else ()  # the default of the recipe's fields
