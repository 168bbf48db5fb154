"""The meaning of a folder's structure: kohya's `10_sks dog` and `reg/`, OneTrainer's masks, Hugging Face's splits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.captions import one_line
from trainer.data.folder import Listing, Unused, plain
from trainer.data.images import SUFFIXES, lacking
from trainer.data.sources import Source

KOHYA = re.compile(r"(\d+)_(.*)", re.DOTALL)
REGULARISATION = re.compile(r"reg(s|ulari[sz]ation)?([ _-].*|images?|imgs?|data|dir)?|class[ _-]?(images?|pictures?|data|dir)",
                            re.IGNORECASE)
GENERIC = re.compile(r"(train(ing)?([ _-]?data)?|data(set)?s?|images?|imgs?|pics?|pictures?|photos?|raw|source|input|instance"
                     r"([ _-](data|images?))?|new folder|untitled folder|\d+([ _-]?x[ _-]?\d+)?(px)?)", re.IGNORECASE)
"""Folder names that do not describe their content, so they are not used as captions."""
SPLITS = {"test", "val", "valid", "validation", "dev"}
MASK_FOLDERS = {"mask", "masks"}
MASK, CONDITION = "-masklabel", "-condlabel"
MOST_REPEATS = 1000
"""Largest number of repeats in a folder's name; a larger number, or a year, is part of the name."""


@dataclass(frozen=True)
class Place:
    """Settings of a picture from the folders above it. repeats: 0 leaves it out."""

    category: str = ""
    repeats: int = 1
    reg: bool = False
    own_class: bool = False
    """the category is the class in a kohya folder's name"""


@dataclass
class Roles:
    """The files of a listing by their role."""

    pictures: list[Path] = field(default_factory=list)
    masks: dict[Path, Path] = field(default_factory=dict)
    """picture -> mask"""
    others: list[Path] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    """folders whose number was taken as part of the name"""


def roles(listing: Listing, source: Source) -> Roles:
    """Sort the files of a folder by role. Files that are left out are counted in the listing's `unused`."""
    left_out = _left_out(listing)
    models = {file.with_suffix("") for file in listing.files if file.suffix == ".safetensors"}
    found, result = [], Roles()
    for file in listing.files:
        name, suffix = listing.name(file), file.suffix.lower()
        gone = next((kind for folder, kind in left_out.items() if folder in file.parents), "")
        if gone:
            listing.unused.add(gone, name)
        elif suffix not in SUFFIXES:
            result.others.append(file)
        elif file.with_suffix("") in models:
            listing.unused.add("previews beside a LoRA", name)
        elif missing := lacking(suffix):
            listing.unused.add(f"{suffix} ({missing} to read them)", name)
        elif file.stem.lower().endswith(CONDITION):
            listing.unused.add(f"conditioning pictures ({CONDITION})", name)
        else:
            found.append(file)
    result.pictures, result.masks = _masks(found, listing, source)
    return result


def _left_out(listing: Listing) -> dict[Path, str]:
    """Folders without training pictures, and the reason: kohya's log/ and model/ beside img/, test splits beside train/."""
    below: dict[Path, dict[str, Path]] = {}
    for folder in {folder for file in listing.files for folder in file.parents if folder != listing.root
                   and listing.root in folder.parents}:
        below.setdefault(folder.parent, {})[folder.name.lower()] = folder
    found = {}
    for names in below.values():
        if {"img", "image", "images"} & names.keys() and {"log", "model"} & names.keys():
            for name in {"log", "logs", "model", "models", "sample", "samples"} & names.keys():
                found[names[name]] = "files in kohya's log and model folders"
        if "train" in names:
            for name in SPLITS & names.keys():
                found[names[name]] = "files in a test or validation folder beside train"
    return found


def _masks(found: list[Path], listing: Listing, source: Source) -> tuple[list[Path], dict[Path, Path]]:
    """Separate the pictures in `found` from their masks: `a-masklabel.png`, `mask/a.png`, or those in the `masks=` folder."""
    labels = [file for file in found if file.stem.lower().endswith(MASK)]
    pictures = [file for file in found if file not in set(labels)]
    masks: dict[Path, Path] = {}
    by_place = _by_stem(pictures, listing.root)
    for file in labels:
        wanted = plain(str(file.with_name(file.stem[: -len(MASK)]).relative_to(listing.root)))
        _claim(by_place.get(wanted, []), file, masks, listing.unused, listing.name(file))
    for folder in sorted({f for file in pictures for f in file.parents if f.name.lower() in MASK_FOLDERS and f != listing.root
                          and listing.root in f.parents}):
        inside = [file for file in pictures if folder in file.parents]
        outside = [file for file in pictures if folder not in file.parents and folder.parent in file.parents]
        matches = _matches(inside, folder, outside, folder.parent)
        if not inside or 2 * len(matches) < len(inside):  # a folder of pictures of masks
            continue
        pictures = [file for file in pictures if folder not in file.parents]
        for file in inside:
            _claim(matches.get(file, []), file, masks, listing.unused, listing.name(file))
    if source.masks:
        inside = sorted(file for file in source.masks.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        pictures = [file for file in pictures if source.masks.resolve() not in file.resolve().parents]
        matches = _matches(inside, source.masks, pictures, listing.root)
        for file in inside:
            _claim(matches.get(file, []), file, masks, listing.unused, file.name)
    return pictures, masks


def _by_stem(files: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(plain(str(file.relative_to(root).with_suffix(""))), []).append(file)
    return found


def _matches(masks: list[Path], folder: Path, pictures: list[Path], root: Path) -> dict[Path, list[Path]]:
    """mask -> pictures with its name: at the same relative path, else the only one with its stem."""
    places = _by_stem(pictures, root)
    stems: dict[str, list[Path]] = {}
    for picture in pictures:
        stems.setdefault(plain(picture.stem), []).append(picture)
    found = {}
    for mask in masks:
        stem = plain(mask.stem).removesuffix(MASK).removesuffix("_mask")
        same = places.get(plain(str(mask.relative_to(folder).with_suffix(""))), [])
        alone = stems.get(stem, [])
        if same or len(alone) == 1:
            found[mask] = same or alone
    return found


def _claim(pictures: list[Path], mask: Path, masks: dict[Path, Path], unused: Unused, name: str) -> None:
    if not pictures:
        unused.add("masks without a picture of their name", name)
    for picture in pictures:
        if picture in masks:
            unused.add("second masks of a picture", name)
        masks.setdefault(picture, mask)


def place_of(picture: Path, root: Path, source: Source, numbers: list[str]) -> Place:
    """The category, repeats and role, from the folders between `picture` and `root`; `root` itself may be a kohya folder."""
    folders = [folder for folder in picture.parents if folder == root or root in folder.parents]
    below = [folder for folder in folders if folder != root]
    reg = source.reg if source.reg is not None else any(REGULARISATION.fullmatch(folder.name) for folder in below)
    for folder in folders:
        repeats, name = kohya_folder(folder.name)
        if repeats is not None:
            return Place(one_line(name), source.repeats if source.repeats is not None else repeats, reg, True)
        if KOHYA.fullmatch(folder.name) and folder.name not in numbers:
            numbers.append(folder.name)
    named = next((folder.name for folder in below if not (GENERIC.fullmatch(folder.name)
                                                          or REGULARISATION.fullmatch(folder.name))), "")
    return Place(one_line(named), source.repeats or 1, reg)


def kohya_folder(name: str) -> tuple[int | None, str]:
    """ "10_sks dog" -> (10, "sks dog"); a name without a number, or with one that is a year or above 1000: (None, name)."""
    match = KOHYA.fullmatch(name)
    if not match or int(match[1]) > MOST_REPEATS or (len(match[1]) == 4 and match[1][:2] in ("19", "20")):
        return None, name
    return int(match[1]), match[2]
