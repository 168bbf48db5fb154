"""Captions of a user's own pictures: from files beside them, metadata files, or folder names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from convert.errors import JobError
from trainer.data.folder import Unused, plain
from trainer.data.metadata import NAMES, Resolver, captions_of, read_metadata, resolve
from trainer.data.texts import MOST_CAPTION, read_json, read_text

TEXT_SUFFIXES = (".txt", ".caption", ".tags", ".json")
"""Suffixes of a picture's own caption files, in order of precedence."""


@dataclass
class Captions:
    """The captions of each picture and their sources. Pictures without captions are not in `of`."""

    of: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    origin: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    """files that cannot be used, one line each"""

    def put(self, picture: Path, texts: Iterable[str], origin: str, *, join: bool) -> bool:
        """Store the captions in `texts`, one per line, or joined; False if they are empty."""
        found = lines(texts, join=join)
        if found and picture not in self.of:
            self.of[picture], self.origin[picture] = found, origin
        return bool(found)


def lines(texts: Iterable[str], *, join: bool) -> tuple[str, ...]:
    """The captions in some texts, one per line, or with `join` one per text. White space becomes single spaces."""
    whole = [line for text in texts for line in ([text] if join else text.splitlines())]
    return tuple(dict.fromkeys(found for line in whole if (found := one_line(line))))


def own_captions(folder: Path, pictures: list[Path], others: list[Path], unused: Unused, *, join: bool) -> Captions:
    """The captions of `pictures`. All paths lie under `folder`; `others` are its remaining files, in order.

    A picture's captions are the first of these that exist and are not blank: the file with its name beside it (`a.txt` or
    `a.png.txt`; `.txt` before `.caption`, `.tags` and `.json`); its entry in one of `metadata.NAMES` in its own folder or
    in one above (the nearest wins). Files without a picture are counted in `unused`.
    """
    captions = Captions()
    _beside(folder, pictures, [o for o in others if o.name.lower() not in NAMES], unused, captions, join)
    resolver = Resolver(folder, pictures)
    tables = [o for o in others if o.name.lower() in NAMES]
    for file in sorted(tables, key=lambda o: (-len(o.parts), -NAMES.index(o.name.lower()))):
        try:
            found = resolve(file, read_metadata(file), resolver)
        except JobError as error:
            if file.name.lower() == "metadata.json" and not _about_pictures(file, pictures):
                unused.add("metadata.json without captions", file.relative_to(folder).as_posix())
            else:
                captions.problems.append(str(error))
            continue
        name = file.relative_to(folder).as_posix()
        for picture, texts in found.items():
            if picture in captions.of:
                unused.add(f"entries of {file.name} for pictures with a nearer caption", name)
            captions.put(picture, texts, file.name, join=join)
    return captions


def _about_pictures(file: Path, pictures: list[Path]) -> bool:
    """Whether a metadata.json names any of the pictures: other programs use this name too."""
    try:
        text = plain(read_text(file))
    except JobError:
        return True
    return any(plain(picture.stem) in text for picture in pictures)


def _beside(folder: Path, pictures: list[Path], others: list[Path], unused: Unused, captions: Captions, join: bool) -> None:
    """Captions from files with the pictures' names, regardless of case and Unicode normalisation."""
    files: dict[str, list[Path]] = {}
    for other in others:
        if other.suffix.lower() in TEXT_SUFFIXES:
            files.setdefault(plain(str(other)), []).append(other)
    used: set[Path] = set()
    for picture in pictures:
        for suffix in TEXT_SUFFIXES:
            for name in (picture.with_suffix(suffix), picture.with_name(picture.name + suffix)):
                found = files.get(plain(str(name)), [])
                file = name if name in found else found[0] if len(found) == 1 else None
                if file is None:
                    continue
                if picture not in captions.of:
                    _read_own(picture, file, captions, unused, folder, join)
                elif file not in used:
                    unused.add(f"{suffix} beside another caption of the picture", file.relative_to(folder).as_posix())
                used.add(file)
    for same in files.values():
        for file in same:
            if file not in used:
                unused.add(f"{file.suffix.lower()} without a picture of its name", file.relative_to(folder).as_posix())


def _read_own(picture: Path, file: Path, captions: Captions, unused: Unused, folder: Path, join: bool) -> None:
    try:
        texts = captions_of(read_json(file, MOST_CAPTION)) if file.suffix.lower() == ".json" else (read_text(file),)
    except JobError as error:
        captions.problems.append(str(error))
        return
    if not captions.put(picture, texts, file.suffix.lower(), join=join):
        unused.add(f"{file.suffix.lower()} without a caption", file.relative_to(folder).as_posix())


def with_trigger(trigger: str, caption: str) -> str:
    """ "a scribble of", "cat" -> "a scribble of cat"; "sks", "1girl, solo" -> "sks, 1girl, solo".

    A caption that already contains the trigger as whole words does not change. The trigger is joined to tags with a comma, to
    a sentence with a space.
    """
    trigger = one_line(trigger)
    if not trigger or not caption:
        return trigger or caption
    if holds(caption, trigger):
        return caption
    leads_on = trigger.rsplit(" ", 1)[-1].lower() in LEADING or trigger.endswith(",")
    return f"{trigger}, {caption}" if is_tags(caption) and not leads_on else f"{trigger} {caption}"


LEADING = {"of", "by", "with", "in", "a", "an", "the", "like", "from", "at"}
"""Last words of a trigger that need a space after them, not a comma."""
ARTICLES = {"a", "an", "the", "this", "there", "two", "some"}


def holds(caption: str, trigger: str) -> bool:
    """Whether `caption` contains `trigger` as whole words, ignoring commas and case."""
    def words(text: str) -> str:
        return " " + " ".join("".join(c if c.isalnum() or c in "_'-" else " " for c in text.lower()).split()) + " "

    return words(trigger).strip() != "" and words(trigger) in words(caption)


def is_tags(caption: str) -> bool:
    """Whether a caption is a list of tags: short pieces between commas, not a sentence with a comma."""
    pieces = [piece.split() for piece in split_tags(caption)]
    if len(pieces) < 2 or caption.rstrip().endswith("."):
        return False
    sentence = pieces[0][0].lower() in ARTICLES and len(pieces) < 4
    return not sentence and sum(map(len, pieces)) <= 3 * len(pieces)


def split_tags(caption: str) -> list[str]:
    return [tag for piece in caption.split(",") if (tag := piece.strip())]


def one_line(text: str) -> str:
    return " ".join(text.replace("\N{ZERO WIDTH NO-BREAK SPACE}", "").split())


def shared(captions: list[str]) -> str:
    """A trigger that all captions share: tags that are in every one, or common first words; "" for none."""
    given = [caption for caption in captions if caption]
    if len(given) < max(3, len(captions)):
        return ""
    if all("," in caption for caption in given):
        counts = Counter(tag for caption in given for tag in set(split_tags(caption)))
        return ", ".join(tag for tag in dict.fromkeys(split_tags(given[0])) if counts[tag] == len(given))
    common = given[0].replace(",", " ,").split()
    for caption in given[1:]:
        words = caption.replace(",", " ,").split()
        common = common[: next((i for i, (a, b) in enumerate(zip(common, words)) if a != b), min(len(common), len(words)))]
    while common and (common[-1].lower() in LEADING | {"and", "on", "is", ","}):
        common.pop()
    return " ".join(common).replace(" ,", ",")
