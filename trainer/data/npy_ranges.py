"""Rows of a .npy file on a web server, by HTTP byte ranges (RFC 9110, section 14): its header first, then just those rows.

fsspec's `cat_ranges` also fetches ranges, but it does not check Content-Range, and if a server ignores Range it returns wrong
bytes or reads the whole file. Wrong bytes would be wrong drawings without any error, so the headers of every reply are
checked. `requests` does the rest: persistent connections, proxies, certificates, truncated transfers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from urllib.parse import unquote

import requests
from requests import exceptions as broken

from convert.errors import JobError
from trainer.data.npy_folder import header_length, parse_header
from trainer.data.records import ROW_BYTES

TIMEOUT = (10, 15)  # seconds to connect, and between parts of a reply; also the longest wait after Ctrl-C
TRIES = 6
FIRST_PAUSE = 0.5  # seconds before the second try, doubled before each further one: 15 s in total
LONGEST_PAUSE = 30.0  # seconds, even if the server's Retry-After is longer
FIRST_BYTES = 1024  # official headers are 80 bytes, newer ones 128
MERGED_GAP = 16 * 1024  # bytes between two rows that cost less than another request
MIRROR = "check --data-url, or give a local folder of .npy drawings with --data"

Span = tuple[int, int]  # bytes start..stop-1 of a file


class FileChanged(JobError):
    """The server's file is not the one whose header was read."""


class _TryAgain(Exception):
    """A failure worth retrying. wait: seconds requested by the server."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Layout:
    """Facts from a file's header. count: rows; offset: bytes before the first; etag: the server's strong ETag or ""."""

    count: int
    offset: int
    etag: str

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self.offset + self.count * ROW_BYTES


class RangeReader:
    """Reads files one after another over one persistent connection; for use by one thread.

    warn: called with a line if the server ignores Range. stop: once set, waiting ends and reading raises JobError.
    """

    def __init__(self, warn: Callable[[str], None], stop: Event) -> None:
        self._warn = warn
        self._stop = stop
        self._session = requests.Session()
        self._session.headers.update({"Accept-Encoding": "identity", "User-Agent": "scribble-lora"})

    def close(self) -> None:
        self._session.close()

    def layout(self, url: str) -> Layout:
        """The header of a uint8 (N, 784) or (N, 1, 784) array. JobError if `url` has anything else."""
        total, etag, (head,) = self._read(url, [(0, FIRST_BYTES)], None)
        if len(head) < (needed := header_length(url, head, MIRROR)):
            total, etag, (head,) = self._read(url, [(0, needed)], None)
        count, offset = parse_header(url, head, MIRROR)
        layout = Layout(count, offset, etag)
        if total not in (None, layout.size):
            raise JobError(f"{url}: is {total:,} bytes, but the {count:,} drawings in its header need {layout.size:,}: "
                           f"the file is damaged or cut off: {MIRROR}")
        return layout

    def rows(self, url: str, layout: Layout, wanted: Iterable[int]) -> dict[int, bytes]:
        """The 784 bytes of each wanted row. FileChanged if the file no longer matches `layout`."""
        groups = _neighbours(wanted)
        spans = [(layout.offset + g[0] * ROW_BYTES, layout.offset + (g[-1] + 1) * ROW_BYTES) for g in groups]
        read = zip(groups, self._read(url, spans, layout)[2])
        return {row: data[(row - group[0]) * ROW_BYTES :][:ROW_BYTES] for group, data in read for row in group}

    def _read(self, url: str, spans: Sequence[Span], known: Layout | None) -> tuple[int | None, str, list[bytes]]:
        """Size of the file (None if unknown), its ETag, and the bytes of ascending `spans`.

        Without `known` a span may extend beyond the end of the file, where it is then cut.
        """
        got: list[bytes] = []
        size, etag, failures = None, "", 0
        while len(got) < len(spans):
            before = len(got)
            try:
                size, etag = self._request(url, spans[before:], known, got)
                failures = 0
            except broken.SSLError as error:  # retrying would not help
                raise JobError(f"{url}: the server's certificate cannot be verified ({_root(error)}): if it is your own, set "
                               f"REQUESTS_CA_BUNDLE to its authority; or {MIRROR}") from error
            except (broken.ConnectionError, broken.Timeout, broken.ChunkedEncodingError, _TryAgain) as error:
                failures = 1 if len(got) > before else failures + 1
                self._pause(url, failures, error)
            except (broken.RequestException, UnicodeError) as error:
                raise JobError(f"{url}: cannot be requested ({_reason(error)}): {MIRROR}") from error
        return size, etag, got

    def _request(self, url: str, spans: Sequence[Span], known: Layout | None, got: list[bytes]) -> tuple[int | None, str]:
        """Request the first span; append its bytes to `got`, or those of all spans if the server sends the whole file."""
        if self._stop.is_set():
            raise JobError(f"{url}: was not read completely, because another file failed")
        start, stop = spans[0]
        with self._session.get(url, headers={"Range": f"bytes={start}-{stop - 1}"}, stream=True, timeout=TIMEOUT) as reply:
            _check_status(url, reply)
            partial = reply.status_code == 206
            size, end = _part(url, reply, spans[0]) if partial else (_number(reply.headers.get("Content-Length")), None)
            etag = reply.headers.get("ETag", "")
            etag = "" if etag.startswith("W/") else etag
            _check_same(url, known, size, etag)
            if end is not None:
                if end != min(stop, size or stop):
                    raise _TryAgain(f"asked for bytes {start}-{stop - 1}, it sent {start}-{end - 1}")
                (data,) = _cut(reply.iter_content(64 * 1024), [(0, end - start + 1)])  # one more byte than expected
                got.append(_sized(data, end - start))
                return size, etag
            if size is None or size > stop:
                self._warn("the server ignores byte ranges, so files are read up to the last drawing needed: slow, up to "
                           "270 MB per category; give a mirror with byte ranges as --data-url")
            for (first, last), data in zip(spans, _cut(reply.iter_content(64 * 1024), spans)):
                got.append(data if known is None and size is None else _sized(data, min(last, size or last) - first))
        return size, etag

    def _pause(self, url: str, failures: int, error: Exception) -> None:
        if failures >= TRIES:
            if isinstance(error, _TryAgain):
                raise JobError(f"{url}: tried {TRIES} times, and {error}: try again later; or {MIRROR}") from error
            through = " through the proxy" if isinstance(error, broken.ProxyError) else ""
            raise JobError(f"{url}: cannot be read{through} ({_root(error)}): check the connection; or {MIRROR}") from error
        pause = FIRST_PAUSE * 2 ** (failures - 1) * random.uniform(0.75, 1.25)  # so that workers do not retry at once
        self._stop.wait(max(pause, min(getattr(error, "wait", 0.0), LONGEST_PAUSE)))


def _check_status(url: str, reply: requests.Response) -> None:
    status = f"{reply.status_code} {reply.reason or ''}".strip()
    if reply.status_code in (408, 425, 429) or reply.status_code >= 500:
        raise _TryAgain(f"the server answered {status}", float(_number(reply.headers.get("Retry-After")) or 0))
    if reply.status_code in (401, 403, 404, 410):
        raise JobError(f"{url}: {status}: '{unquote(url.rsplit('/', 1)[1])}' does not exist there: {MIRROR}")
    if reply.status_code == 416:
        raise FileChanged(f"{url}: {status}: the file is empty or shorter than its header says: {MIRROR}")
    if reply.status_code not in (200, 206):
        raise JobError(f"{url}: the server answered {status}, expected 206 Partial Content: {MIRROR}")
    coding = reply.headers.get("Content-Encoding", "identity").lower()
    if coding not in ("", "identity"):
        raise JobError(f"{url}: the server compresses it as {coding} although asked not to, so byte ranges fail: {MIRROR}")


def _part(url: str, reply: requests.Response, span: Span) -> tuple[int | None, int]:
    """The whole file's size (None if unknown) and the part's end from Content-Range, after checking the part's start."""
    said = reply.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)", said.strip(), re.ASCII)
    if match is None or int(match[1]) != span[0] or int(match[2]) < span[0]:
        raise JobError(f"{url}: asked for bytes {span[0]}-{span[1] - 1}, but the server's Content-Range is {said!r}: {MIRROR}")
    return None if match[3] == "*" else int(match[3]), int(match[2]) + 1


def _sized(data: bytes, expected: int) -> bytes:
    if len(data) != expected:
        raise _TryAgain(f"it sent {'more than' if len(data) > expected else f'{len(data):,} of'} {expected:,} bytes")
    return data


def _check_same(url: str, known: Layout | None, size: int | None, etag: str) -> None:
    if known is not None and size not in (None, known.size):
        raise FileChanged(f"{url}: is now {size:,} bytes, but {known.size:,} by its header: it changed or is damaged: {MIRROR}")
    if known is not None and known.etag and etag and etag != known.etag:
        raise FileChanged(f"{url}: changed on the server while it was being read: try again later; or {MIRROR}")


def _cut(chunks: Iterable[bytes], spans: Sequence[Span]) -> Iterator[bytes]:
    """The bytes of ascending `spans` of a stream, each as soon as it is complete; shorter if the stream ends early."""
    stream, position, part = iter(chunks), 0, b""  # `part` starts at byte `position` of the stream
    for start, stop in spans:
        while position + len(part) < stop and (chunk := next(stream, b"")):
            gone = min(max(start - position, 0), len(part))
            part, position = part[gone:] + chunk, position + gone
        yield part[max(start - position, 0) : stop - position]


def _neighbours(rows: Iterable[int]) -> list[list[int]]:
    """Rows in ascending order, grouped if near enough to be read together."""
    groups: list[list[int]] = []
    for row in sorted(set(rows)):
        if groups and (row - groups[-1][-1] - 1) * ROW_BYTES <= MERGED_GAP:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"\d{1,15}", text.strip(), re.ASCII) else None


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _root(error: BaseException) -> str:
    """The operating system's message, without those of requests and urllib3."""
    while error.__context__ is not None:
        error = error.__context__
    return _reason(error)
