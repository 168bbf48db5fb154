"""QuickDraw's bitmaps from the public bucket or a mirror: a few MB for the paper's 2,000 drawings, and offline afterwards."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from convert.errors import JobError, UsageError
from convert.files import write_bytes
from convert.files.json_file import parse
from trainer.data.categories import ATTRIBUTION, QUICKDRAW
from trainer.data.npy_folder import TRIGGER, few_rows
from trainer.data.npy_ranges import FileChanged, Layout, RangeReader
from trainer.data.records import ROW_BYTES, Dataset, Drawing
from trainer.data.split import HELD_OUT_ROWS, Rows, choose_categories, choose_rows
from trainer.recipe import Recipe
from trainer.terminal import say_nothing

WORKERS = 16
LONGEST_GOODBYE = 1.0  # seconds to wait for unfinished downloads after an error or Ctrl-C

Say = Callable[[str], None]


class Wanted(NamedTuple):
    """The rows to use of every category: how many of each part, and the seed that chooses them."""

    per_category: int
    held_out: int
    seed: int


@dataclass(frozen=True)
class Fetched:
    """The known part of one category's file: its layout and the 784 bytes of some rows."""

    layout: Layout
    rows: dict[int, bytes]

    def chosen(self, category: str, wanted: Wanted) -> Rows:
        return choose_rows(category, self.layout.count, wanted.per_category, wanted.seed, wanted.held_out)

    def lacks(self, category: str, wanted: Wanted) -> list[int]:
        chosen = self.chosen(category, wanted)
        return [row for row in chosen.train + chosen.held_out if row not in self.rows]


def load_quickdraw(recipe: Recipe, *, cache: Path, say: Say, held_out_rows: int = HELD_OUT_ROWS) -> Dataset:
    """Drawings of `recipe.categories`: the same rows as from a folder with the same files.

    cache: the folder for fetched rows. say: receives one-line notices, one at a time.

    Raises:
        UsageError: a category is unknown, or --data-url is not a web address.
        JobError: a file cannot be fetched or is not a uint8 (N, 784) or (N, 1, 784) array.
    """
    url = checked_url(recipe.data_url)
    seen, unseen = choose_categories(recipe.categories, list(QUICKDRAW), recipe.data_seed_used)
    store = Store(cache / "quickdraw", url, _one_at_a_time(say))
    wanted = Wanted(recipe.per_category, held_out_rows, recipe.data_seed_used)
    known = {category: store.read(category) for category in seen}
    have = {category: entry for category, entry in known.items() if entry is not None}
    lacking = [category for category in seen if category not in have or have[category].lacks(category, wanted)]
    if lacking:
        store.say(f"QuickDraw: fetching drawings of {len(lacking)} categories from {url} (kept in {store.folder})")
        have |= _fetch_all({category: known[category] for category in lacking}, store, wanted)
    train: list[Drawing] = []
    held_out: list[Drawing] = []
    few: dict[str, int] = {}
    for category in seen:
        rows = have[category].chosen(category, wanted)
        if len(rows.train) < recipe.per_category:
            few[category] = len(rows.train)
        train += _drawings(category, rows.train, have[category])
        held_out += _drawings(category, rows.held_out, have[category])
    return Dataset(train=train, held_out=held_out, trigger=TRIGGER, seen=seen, unseen=unseen, attribution=ATTRIBUTION,
                   notes=[few_rows(few, recipe.per_category)] if few else [])


def lacking_categories(recipe: Recipe, *, cache: Path, held_out_rows: int = HELD_OUT_ROWS) -> list[str]:
    """The categories that `load_quickdraw` would fetch."""
    store = Store(cache / "quickdraw", checked_url(recipe.data_url), say_nothing)
    wanted = Wanted(recipe.per_category, held_out_rows, recipe.data_seed_used)
    seen, _ = choose_categories(recipe.categories, list(QUICKDRAW), recipe.data_seed_used)
    return [category for category in seen if (have := store.read(category)) is None or have.lacks(category, wanted)]


def _drawings(category: str, rows: Sequence[int], entry: Fetched) -> list[Drawing]:
    return [Drawing(bitmap=entry.rows[row], category=category, caption=f"{TRIGGER} {category}",
                    source=f"{category}.npy row {row}") for row in rows]


def checked_url(data_url: str) -> str:
    """--data-url without a trailing slash. UsageError if it is not an address, or contains a password."""
    try:
        parts = urlsplit(data_url)
        if parts.username is not None or parts.password is not None:
            raise UsageError("--data-url: contains a user name or password, which would be written into the run, the cache "
                             "and the LoRA: put them into ~/.netrc instead")
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        sound = sound and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound:
        shown = re.sub(r"//[^/@]*@", "//…@", data_url)
        raise UsageError(f"--data-url {shown}: expected the http:// or https:// address of a folder of <category>.npy files; "
                         "a local folder is given with --data")
    return data_url.rstrip("/")


def _one_at_a_time(say: Say) -> Say:
    """A thread-safe `say` that prints each line only once."""
    lock, said = Lock(), set[str]()

    def tell(line: str) -> None:
        with lock:
            if line not in said:
                said.add(line)
                say(line)

    return tell


def _fetch_all(known: dict[str, Fetched | None], store: Store, wanted: Wanted) -> dict[str, Fetched]:
    """Fetch missing rows, several categories in parallel. The first error stops it; finished categories are kept."""
    from tqdm import tqdm

    stop = Event()

    def fetch(category: str) -> Fetched:
        with closing(RangeReader(lambda line: store.say(f"{store.url}: {line}"), stop)) as reader:
            return _fetch(category, known[category], reader, store, wanted)

    waiting, results = list(reversed(known)), Queue[tuple[str, Fetched | BaseException]]()

    def work() -> None:
        while not stop.is_set():
            try:
                category = waiting.pop()
            except IndexError:
                return
            try:
                results.put((category, fetch(category)))
            except BaseException as error:  # noqa: BLE001 - reraised by the waiting thread
                results.put((category, error))

    # daemon threads, so that Ctrl-C does not wait for a stalled server
    threads = [Thread(target=work, name=f"quickdraw {n}", daemon=True) for n in range(min(WORKERS, len(known)))]
    done: dict[str, Fetched] = {}
    try:
        for thread in threads:
            thread.start()
        with tqdm(total=len(known), desc="QuickDraw", unit="category", disable=None) as bar:
            while len(done) < len(known):
                category, result = results.get()
                if isinstance(result, BaseException):
                    raise result
                done[category] = result
                bar.update()
    finally:
        stop.set()
        until = time.monotonic() + LONGEST_GOODBYE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    return done


def _fetch(category: str, known: Fetched | None, reader: RangeReader, store: Store, wanted: Wanted) -> Fetched:
    url = store.address(category)
    try:
        whole = _completed(category, known, reader, url, wanted)
    except FileChanged:
        if known is None:
            raise
        store.say(f"{url}: differs from the file that the cached drawings are from: fetching all of them again")
        whole = _completed(category, None, reader, url, wanted)
    store.write(category, whole)
    return whole


def _completed(category: str, known: Fetched | None, reader: RangeReader, url: str, wanted: Wanted) -> Fetched:
    have = known or Fetched(reader.layout(url), {})
    return Fetched(have.layout, have.rows | reader.rows(url, have.layout, have.lacks(category, wanted)))


class Store:
    """Fetched rows on disk, a file per category and --data-url: a line of JSON (facts, sha256), then the rows' bytes."""

    def __init__(self, folder: Path, url: str, say: Say) -> None:
        self.folder, self.url, self.say = folder, url, say

    def address(self, category: str) -> str:
        return f"{self.url}/{quote(category)}.npy"

    def path(self, category: str) -> Path:
        key = hashlib.sha256(f"{self.url}\0{category}".encode()).hexdigest()
        return self.folder / f"{category.replace(' ', '-')}-{key[:16]}.rows"

    def read(self, category: str) -> Fetched | None:
        """The cached rows, or None. A damaged file is reported and treated as missing."""
        path = self.path(category)
        try:
            line, _, body = path.read_bytes().partition(b"\n")
            facts = parse(line.decode())
            if facts.pop("sha256") != _checksum(facts, body) or facts["url"] != self.address(category):
                raise ValueError("its checksum does not match its bytes")
            if len(body) != ROW_BYTES * len(facts["rows"]):
                raise ValueError("its size does not match its number of rows")
            rows = {row: body[i * ROW_BYTES : (i + 1) * ROW_BYTES] for i, row in enumerate(facts["rows"])}
            return Fetched(Layout(**facts["layout"]), rows)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self.say(f"{path}: damaged ({' '.join(str(error).split())}); fetching its drawings again")
            return None

    def write(self, category: str, entry: Fetched) -> None:
        """Store `entry`. If the disk is full or read-only, this run continues with a notice and the next downloads again."""
        rows = sorted(entry.rows)
        body = b"".join(entry.rows[row] for row in rows)
        facts = {"url": self.address(category), "layout": asdict(entry.layout), "rows": rows}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path(category), json.dumps(facts | {"sha256": _checksum(facts, body)}).encode() + b"\n" + body)
        except (OSError, JobError):
            self.say(f"{self.folder}: cannot be written, so the drawings are not cached for the next run; see --cache")


def _checksum(facts: Mapping[str, object], body: bytes) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + b"\n" + body).hexdigest()
