"""Decodes picture files to upright 8-bit sRGB pixels on white, and identifies files that are not pictures."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from convert.errors import JobError
from trainer.data.folder import read_regular
from trainer.data.ours import MARK

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".jpe", ".jp2", ".j2k", ".tga", ".ppm",
            ".pgm", ".pbm", ".dib", ".apng", ".avif", ".heic", ".heif", ".jxl")  # fmt: skip
FORMATS = ["PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "JPEG2000", "PPM", "AVIF"]
"""Formats whose parsers do not run external programs."""
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}
BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error, MemoryError,
          Image.DecompressionBombError)  # fmt: skip
"""Pillow's errors for damaged or extremely large files."""
MOST_PIXELS = 178_956_970  # the size at which Pillow warns; larger pictures are refused
LARGE, SHORT_SIDE = 32_000_000, 2048
"""Larger pictures are decoded one at a time and immediately reduced to this short side, to limit memory use."""
_one_large_at_a_time = Lock()

PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 2**26, 2**27  # ComfyUI writes whole workflows into its PNGs


@dataclass(frozen=True, slots=True)
class Header:
    """Facts from a picture's header."""

    width: int
    """in pixels, upright"""
    height: int
    moving: bool
    transparent: bool
    ours: bool
    """a contact sheet of this program"""


@lru_cache
def formats() -> tuple[str, ...]:
    """The formats that Pillow can read with the installed plugins."""
    found = list(FORMATS)
    if find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append("HEIF")
    if find_spec("pillow_jxl"):
        import pillow_jxl  # noqa: F401 - registers itself

        found.append("JXL")
    Image.init()
    return tuple(name for name in found if name in Image.OPEN)


def lacking(suffix: str) -> str:
    """The missing package for files with this suffix; "" if they can be read."""
    kind = {".heic": "HEIF", ".heif": "HEIF", ".jxl": "JXL", ".avif": "AVIF"}.get(suffix, "")
    if not kind or (kind in formats() and (kind != "AVIF" or features.check("avif"))):
        return ""
    return f"pip install {PLUGINS[suffix]}" if suffix in PLUGINS else "a Pillow with AVIF"


def _open(file: Path | IO[bytes], suffix: str) -> Image.Image:
    # TGA has no magic number, so any file could be taken for one
    image = Image.open(file, formats=[*formats(), *(["TGA"] if suffix == ".tga" else [])])
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, the limit is {MOST_PIXELS // 10**6} million")
    return image


def read_header(path: Path) -> Header:
    """The header of a picture file. JobError if it is not a readable picture."""
    try:
        with _open(path, path.suffix.lower()) as image:
            turned = _orientation(image) in (5, 6, 7, 8)
            width, height = image.size[::-1] if turned else image.size
            return Header(width, height, bool(getattr(image, "is_animated", False)), image.has_transparency_data,
                          image.info.get("Description") == MARK)
    except BROKEN as error:
        raise broken(path, error) from error


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation. A PNG is not decoded to look for EXIF data after the pixels."""
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    return int(image.getexif().get(0x0112, 1) or 1)


def read_rgb(path: Path) -> Image.Image:
    """The picture in 8-bit RGB, see `to_rgb`. JobError if it cannot be read."""
    return rgb_of(path, read_bytes(path))


def rgb_of(path: Path, data: bytes) -> Image.Image:
    try:
        with _open(io.BytesIO(data), path.suffix.lower()) as image, _bounded(image):
            return to_rgb(_reduced(image))
    except BROKEN as error:
        raise broken(path, error) from error


@contextmanager
def open_whole(path: Path, data: IO[bytes]) -> Iterator[Image.Image]:
    """A decoded picture; very large ones are decoded one at a time. JobError if it is damaged."""
    try:
        with _open(data, path.suffix.lower()) as image, _bounded(image):
            image.load()
            yield image
    except BROKEN as error:
        raise broken(path, error) from error


def read_bytes(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise broken(path, error) from error


def _bounded(image: Image.Image) -> Lock | nullcontext[None]:
    return _one_large_at_a_time if image.width * image.height > LARGE else nullcontext()


def _reduced(image: Image.Image) -> Image.Image:
    """Reduce a very large picture, to avoid further copies of all its pixels; others are returned unchanged."""
    times = min(image.size) // SHORT_SIDE
    if image.width * image.height <= LARGE or times < 2:
        return image
    info, exif = image.info, image.getexif()
    image.draft(None, (image.width // times, image.height // times))  # JPEG: reduce while decoding
    times = min(image.size) // SHORT_SIDE
    if times >= 2 and image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        image = image.reduce(times)
        image.info = info
        if exif:
            image.info["exif"] = exif.tobytes()
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The first frame of an opened picture as 8-bit sRGB: rotated by its EXIF orientation, transparency on white.

    16-bit greys are scaled by 255 / 65535, 32-bit floats from 0..1. An embedded ICC profile (RGB, CMYK or grey) is
    converted to sRGB; an unusable one is ignored; without one, a PNG's gAMA is converted. Raises ValueError for values outside
    those ranges.
    """
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    plain_gamma = not profile and "srgb" not in image.info and isinstance(gamma, float) and abs(gamma - 1 / 2.2) > 0.01
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        return _from_wide(upright)
    if upright.mode == "CMYK":
        return _to_srgb(upright, profile)
    alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    grey = upright.mode in ("1", "L", "LA") and alpha is None or upright.mode == "LA"
    colours = upright.convert("L" if grey else "RGBA" if alpha else "RGB").convert("L" if grey else "RGB")
    colours = _to_srgb(colours, profile)
    if plain_gamma and gamma:
        colours = colours.point(_gamma_table(gamma) * 3)
    if alpha:
        white = Image.new("RGB", colours.size, "white")
        colours.putalpha(alpha)
        colours = Image.alpha_composite(white.convert("RGBA"), colours).convert("RGB")
    return colours


def _gamma_table(gamma: float) -> list[int]:
    """Table from an image's values with PNG's gAMA to sRGB (IEC 61966-2-1; PNG specification, chapter 13.13)."""
    linear = (np.arange(256) / 255) ** (1 / min(max(gamma, 0.1), 10))
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return [int(value) for value in np.rint(255 * curve)]


def _from_wide(image: Image.Image) -> Image.Image:
    """Greys of more than 8 bits -> RGB."""
    values = np.asarray(image).astype(np.float64)
    top = 1 if image.mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= top):
        raise ValueError(f"values from {values.min():g} to {values.max():g}, expected 0 to {top}")
    grey = np.rint(values * (255 / top))
    if "transparency" in image.info:  # a PNG may declare one grey as transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Grey, RGB or CMYK -> sRGB, through the embedded profile if it fits."""
    if profile:
        try:
            source = ImageCms.getOpenProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if space == "GRAY" and image.mode == "RGB":
                image = image.convert("L")
            if space == {"L": "GRAY"}.get(image.mode, image.mode):
                converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError, ImportError):
            return image.convert("RGB")
    return image.convert("RGB")


def broken(path: Path, error: Exception) -> JobError:
    if isinstance(error, Image.UnidentifiedImageError):
        kind, mend = sniff(path), "replace or remove it"
        if kind in ("HEIC", "JPEG XL"):
            mend = f"pip install {'pillow-heif' if kind == 'HEIC' else 'pillow-jxl-plugin'}, or save it as PNG or JPEG"
        return JobError(f"{path}: is not a readable picture (it is {kind or 'an unknown kind of file'}): {mend}")
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__
    return JobError(f"{path}: is not a readable picture ({reason}): replace or remove it")


_KINDS = ((b"%PDF", "a PDF"), (b"PK\x03\x04", "a ZIP archive"), (b"\x1f\x8b", "a gzip archive"), (b"Rar!", "a RAR archive"),
          (b"8BPS", "a Photoshop file"), (b"<svg", "an SVG"), (b"<?xml", "XML, perhaps an SVG"),
          (b"<!doctype html", "a web page"), (b"<html", "a web page"), (b"\xff\x0a", "JPEG XL"),
          (b"\x00\x00\x00\x0cJXL ", "JPEG XL"), (b"\x1aE\xdf\xa3", "a video"),
          (b"version https://git-lfs", "a Git LFS pointer, whose file was not fetched"), (b"%!PS", "PostScript"),
          (b"II\x2a\x00", "a TIFF or a camera's raw file"), (b"{", "a JSON text"))  # fmt: skip


def sniff(path: Path) -> str:
    """The kind of a file that is not a picture, from its first bytes; "" if unknown."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return ""
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "HEIC" if brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc") else "AVIF" if brand == b"avif" else "a video"
    if not head.strip(b"\0"):
        return "an empty file" if not head else "only zeros"
    start = head.lstrip().lower() if head.lstrip()[:1] == b"<" else head
    found = next((kind for mark, kind in _KINDS if start.startswith(mark)), "")
    return found or ("a text" if head.isascii() and head.decode().replace("\n", "").replace("\r", "").isprintable() else "")
