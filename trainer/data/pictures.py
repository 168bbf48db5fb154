"""A folder of a person's own pictures, taken as they are: upright, on white, 8-bit RGB, never inverted."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from convert.errors import JobError, UsageError
from trainer.data.captions import category, own_captions, with_trigger
from trainer.data.ours import MARK, METRICS, RECIPE
from trainer.data.records import Dataset, Example
from trainer.recipe import Recipe
from trainer.rng import Stream

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
UNREAD_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jfif", ".psd", ".svg")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF")  # never the parsers that run other programs
PROCESSING = b"upright, on white, sRGB, bicubic short side, centre\0"  # part of every digest
BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error,
          Image.DecompressionBombError)  # fmt: skip
"""What Pillow raises over files that are damaged, or too large to be honest."""


@dataclass(frozen=True)
class Picture:
    """A picture file. It is read whenever it is asked for; JobError, naming it, where it cannot be."""

    path: Path
    caption: str
    category: str
    source: str

    def raw(self) -> np.ndarray:
        return np.asarray(self._image())

    def pixels(self, resolution: int) -> np.ndarray:
        """The short side is resized to `resolution` (Pillow's bicubic), the middle of the long side is kept."""
        size = (resolution, resolution)
        return np.asarray(ImageOps.fit(self._image(), size, method=Image.Resampling.BICUBIC, centering=(0.5, 0.5)))

    @cached_property
    def digest(self) -> str:
        try:
            return hashlib.sha256(PROCESSING + self.path.read_bytes()).hexdigest()
        except OSError as error:
            raise _broken(self.path, error) from error

    def _image(self) -> Image.Image:
        try:
            with Image.open(self.path, formats=FORMATS) as image:
                return to_rgb(image)
        except BROKEN as error:
            raise _broken(self.path, error) from error


def load_pictures(folder: Path, recipe: Recipe) -> Dataset:
    """The pictures under `folder`, in the order of their paths, captioned as `captions.own_captions` says.

    `recipe.trigger` goes before every caption, and alone where there is none. `recipe.held_out` of the pictures, at
    least one and never all, are drawn by the seed and kept from training. Hidden files, folders called `checkpoints`,
    runs and the pictures that this program wrote (contact sheets, previews beside a LoRA) are left out.

    Raises:
        UsageError: the folder holds no pictures.
        JobError: a picture, or a caption, cannot be read.
    """
    files = _files(folder)
    models = {file.with_suffix("") for file in files if file.suffix == ".safetensors"}
    found = [file for file in files if file.suffix.lower() in SUFFIXES and file.with_suffix("") not in models]
    kinds = {path: _kind(path) for path in found}
    paths = [path for path in found if kinds[path] != "ours"]
    if not paths:
        raise UsageError(f"--data {folder}: holds no pictures; expected .npy drawings, or pictures ({' '.join(SUFFIXES)}) with "
                         "captions in name.txt or name.caption beside each, metadata.jsonl or .csv, or as sub-folders' names")
    captions, notes = own_captions(folder, paths, [file for file in files if file not in set(found)])
    own = len(found) - len(paths)
    notes += [f"contact sheets in {folder}, not trained on: {own}"] if own else []
    moving = [path for path in paths if kinds[path] == "moving"]
    notes += [f"animations or pages: {len(moving)}, first {moving[0].relative_to(folder)}: their first frame is learnt"
              ] if moving else []
    notes += _notes(folder, files, captions, recipe)
    pictures: list[Example] = [
        Picture(path=path, caption=with_trigger(recipe.trigger, captions[path]), category=category(folder, path),
                source=path.relative_to(folder).as_posix()) for path in paths]
    kept = held_out_rows(len(pictures), recipe.held_out, recipe.seed)
    if recipe.held_out:
        notes.append(f"kept from training for the held-out loss: {len(kept)} of {len(pictures)} pictures")
    return Dataset(train=[p for row, p in enumerate(pictures) if row not in kept],
                   held_out=[p for row, p in enumerate(pictures) if row in kept], trigger=recipe.trigger, notes=notes)


def held_out_rows(count: int, share: float, seed: int) -> set[int]:
    """`share` of `count` rows, drawn by the seed: none if it is 0, else at least one; one row at least stays."""
    wanted = min(max(1, round(share * count)), count - 1) if share else 0
    return set(np.random.default_rng([seed, Stream.OWN_HELD_OUT]).permutation(count)[:wanted].tolist())


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame of an opened picture as 8-bit RGB: turned as its EXIF says, transparency on white, in sRGB.

    16-bit greys are scaled by 255 / 65535, 32-bit floats from 0..1. An embedded ICC profile of RGB or CMYK is converted
    to sRGB, one that cannot be used is passed over. ValueError: numbers outside those ranges.
    """
    profile = image.info.get("icc_profile")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        return _from_wide(upright)
    if upright.mode == "CMYK":
        return _to_srgb(upright, profile)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        upright = Image.alpha_composite(white, layer)
    return _to_srgb(upright.convert("RGB"), profile)


def _from_wide(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits -> RGB."""
    values = np.asarray(image).astype(np.float64)
    top = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= top):
        raise ValueError(f"numbers from {values.min():g} to {values.max():g}, expected 0 to {top}")
    grey = np.rint(values * (255 / top))
    if "transparency" in image.info:  # a PNG may name one grey that is to be seen through
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB or CMYK -> RGB, through the embedded profile where it fits."""
    if profile:
        try:
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == image.mode:
                converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError, ImportError):
            return image.convert("RGB")
    return image.convert("RGB")


def _files(folder: Path) -> list[Path]:
    """All files under `folder` by path, linked folders too; neither hidden ones nor those of runs and checkpoints."""
    files: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        a_run = RECIPE in names and METRICS in names
        if real in seen or (a_run and Path(place) != folder):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "checkpoints")
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files, key=lambda file: file.relative_to(folder).parts)


def _kind(path: Path) -> str:
    """"ours" for a contact sheet of ours, "moving" where there are further frames. JobError where it is no readable picture."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            kind = "ours" if image.info.get("Description") == MARK else "moving" if getattr(image, "is_animated", False) else ""
        with Image.open(path, formats=FORMATS) as image:  # another: verifying wants a file that was only opened
            image.verify()
    except BROKEN as error:
        raise _broken(path, error) from error
    return kind


def _broken(path: Path, error: Exception) -> JobError:
    why = "its kind is not known" if isinstance(error, Image.UnidentifiedImageError) else error
    return JobError(f"{path}: is no readable picture ({why}): replace or remove it")


def _notes(folder: Path, files: list[Path], captions: dict[Path, str], recipe: Recipe) -> list[str]:
    """What the user should know before hours are spent on it."""
    notes = []
    unread = [file for file in files if file.suffix.lower() in UNREAD_SUFFIXES]
    if unread:
        notes.append(f"pictures of kinds that are not read: {len(unread)}, first {unread[0].relative_to(folder)}: "
                     "save them as PNG or JPEG to learn them")
    named = [path for path, caption in captions.items() if caption and caption == category(folder, path)]
    if named:
        notes.append(f"pictures captioned with their sub-folder's name: {len(named)} of {len(captions)}, first "
                     f"{named[0].relative_to(folder)}")
    bare = [path for path, caption in captions.items() if not caption]
    if bare:
        trigger = recipe.trigger.strip()
        instead = f"the trigger alone, {trigger!r}" if trigger else "the empty caption (--trigger adds one)"
        notes.append(f"pictures without a caption: {len(bare)} of {len(captions)}, first {bare[0].relative_to(folder)}: "
                     f"they are learnt with {instead}")
    fields = Recipe.__dataclass_fields__
    if any(getattr(recipe, name) != fields[name].default for name in ("categories", "per_category")):
        notes.append("--categories and --per-category choose among drawings: all pictures are learnt")
    return notes
