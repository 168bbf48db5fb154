"""Drawings by byte ranges from a real server on this machine: the right rows, few bytes, or a one-line error."""

from __future__ import annotations

import http.server
import io
import re
import threading
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from convert.errors import JobError, UsageError
from trainer.data import npy_ranges
from trainer.data.npy_folder import load_npy_folder
from trainer.data.quickdraw import checked_url, load_quickdraw
from trainer.recipe import Recipe

NAMES = ["alarm clock", "apple", "t-shirt"]
COUNT = 3000


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.mode, self.sent, self.requests = files, "", 0, 0
        self.asked: set[tuple[str, str]] = set()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server, mode = self.server, self.server.mode
        server.requests += 1
        fresh = (self.path, self.headers["Range"]) not in server.asked
        server.asked.add((self.path, self.headers["Range"]))
        whole = server.files.get(unquote(self.path).strip("/"))
        if whole is None:
            return self.answer(404, b"")
        if mode == "busy" or mode == "busy once" and fresh:
            return self.answer(503, b"")
        if mode == "html":
            return self.answer(200, b"<html>sign in</html>")
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert match
        start, stop = int(match[1]), min(int(match[2]) + 1, len(whole))
        if mode == "no ranges":
            return self.answer(200, whole)
        total = len(whole) + 784 * (mode == "lies")
        shift = 784 if mode == "shifted" and start else 0
        body = whole[start:stop]
        cut = len(body) // 2 if mode == "cut" or mode == "cut once" and fresh else len(body)
        said = f"bytes {start + shift}-{stop - 1 + shift}/{total}"
        return self.answer(206, body, cut, {"Content-Range": said} if mode != "silent" else {})

    def answer(self, status: int, body: bytes, cut: int | None = None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(body[:cut])
        except ConnectionError:
            self.close_connection = True
            return
        self.server.sent += len(body[:cut])
        self.close_connection = cut is not None and cut < len(body)


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(npy_ranges, "FIRST_PAUSE", 0.001)
    draw = np.random.default_rng(0)
    made = Server({f"{name}.npy": npy(draw.integers(0, 256, (COUNT, 784), np.uint8)) for name in NAMES})
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def recipe(server: Server, **other) -> Recipe:
    return Recipe(data_url=f"http://127.0.0.1:{server.server_port}", categories=", ".join(NAMES), **other)


def folder(server: Server, place: Path) -> Path:
    place.mkdir()
    for name, data in server.files.items():
        (place / name).write_bytes(data)
    return place


@pytest.mark.parametrize("mode", ["", "busy once", "cut once", "no ranges"])
def test_the_same_rows_as_a_folder_of_equal_files(server, tmp_path, mode) -> None:
    server.mode, said = mode, []
    wanted = load_npy_folder(folder(server, tmp_path / "files"), recipe(server))
    found = load_quickdraw(recipe(server), cache=tmp_path, say=said.append)
    assert (found.train, found.held_out) == (wanted.train, wanted.held_out)
    assert len(found.train) == 60 and len(found.unseen) == 342 and "CC BY 4.0" in found.attribution
    assert sum("ignores byte ranges" in line for line in said) == (mode == "no ranges")
    if not mode:
        assert server.sent < 3 * (1024 + 22 * 784 + 22 * npy_ranges.MERGED_GAP) and server.sent < 3 * COUNT * 784 / 8


def test_a_second_run_is_offline_and_damaged_rows_are_fetched_again(server, tmp_path) -> None:
    first = load_quickdraw(recipe(server), cache=tmp_path, say=print)
    asked = server.requests
    assert load_quickdraw(recipe(server), cache=tmp_path, say=print) == first
    assert server.requests == asked
    kept = next((tmp_path / "quickdraw").glob("apple*"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    said: list[str] = []
    assert load_quickdraw(recipe(server), cache=tmp_path, say=said.append) == first
    assert "damaged" in said[0] and server.requests > asked


@pytest.mark.parametrize(("mode", "message"), [
                         ("busy", "503"), ("cut", "cannot be read"), ("html", "a web page"),
                         ("lies", "damaged or cut off"), ("shifted", "Content-Range"), ("silent", "Content-Range")])
def test_a_faulty_server_is_one_line(server, tmp_path, mode, message) -> None:
    server.mode = mode
    with pytest.raises(JobError, match=message) as caught:
        load_quickdraw(recipe(server), cache=tmp_path, say=print)
    assert "http://127.0.0.1" in str(caught.value) and "--data-url" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("array", "message"), [
                         (np.zeros((9, 784), np.float32), "float32"), (np.zeros((9, 783), np.uint8), "783"),
                         (np.array([[None] * 784]), "pickled"), (np.zeros((9, 784), np.uint8, "F"), "by columns")])
def test_other_arrays_are_refused(server, tmp_path, array, message) -> None:
    server.files["apple.npy"] = npy(array)
    with pytest.raises(JobError, match=message):
        load_quickdraw(recipe(server), cache=tmp_path, say=print)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_header_versions_and_shapes(server, tmp_path, version) -> None:
    server.files["apple.npy"] = npy(np.arange(30 * 784, dtype=np.uint8).reshape(30, 1, 784), version)
    wanted = load_npy_folder(folder(server, tmp_path / "files"), recipe(server))
    assert load_quickdraw(recipe(server), cache=tmp_path, say=print).train == wanted.train


def test_missing_and_wrong_addresses(server, tmp_path) -> None:
    del server.files["alarm clock.npy"]
    with pytest.raises(JobError, match="'alarm clock.npy' does not exist there"):
        load_quickdraw(recipe(server), cache=tmp_path, say=print)
    with pytest.raises(UsageError, match="--data-url"):
        load_quickdraw(Recipe(data_url="ftp://somewhere"), cache=tmp_path, say=print)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    for address in ("https://me:secret@example.org/x", "https://me@example.org/x"):
        with pytest.raises(UsageError, match="netrc") as caught:
            checked_url(address)
        assert "secret" not in str(caught.value)
    with pytest.raises(UsageError) as caught:
        checked_url("ftp://me:secret@example.org/x?y=1")
    assert "secret" not in str(caught.value)
