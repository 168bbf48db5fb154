"""A base from the hub: a local server with the hub's protocol, a cache, and a hub that cannot be reached."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from trainer.base.hub import is_id

COMMIT = "c0ffee" + "0" * 34
NAME = "someone/a-model"
FETCH = """
import sys
from convert.errors import JobError, UsageError
from trainer.base.load import fetch, load_base
from trainer.recipe import Recipe
try:
    print("fetched", *fetch(sys.argv[1], half=False, say=lambda line: print("said", line)))
except (JobError, UsageError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
if "load" in sys.argv:
    import torch
    base = load_base(Recipe(base=sys.argv[1]), dtype=torch.float32, say=lambda line: print("said", line))
    print("loaded", base.family, base.identity)
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, random_base: Path) -> Path:
    """Files of a model on the hub, including those that training does not need."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    shutil.copytree(random_base, folder)
    for name in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin", "model.ckpt",
                 "unet/diffusion_pytorch_model.fp16.safetensors", "feature_extractor/preprocessor_config.json"):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"never downloaded")
    return folder


@pytest.fixture
def hub(repository: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that offers the repository as `NAME`, and the paths that were fetched from it."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            names = [p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file()]
            if path.startswith(f"/api/models/{NAME}/tree"):
                tree = [{"type": "file", "path": n, "size": (repository / n).stat().st_size, "oid": "0"} for n in names]
                return self.answer(200, json.dumps(tree).encode(), {})
            if "/revision/" in path and path.rpartition("/")[2] not in ("main", "v2", COMMIT):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if path.startswith(f"/api/models/{NAME}"):
                about = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
                return self.answer(200, json.dumps(about).encode(), {})
            name = path.removeprefix(f"/{NAME}/resolve/").partition("/")[2]  # after the commit or the branch
            if name in names:
                body = (repository / name).read_bytes()
                if self.command == "GET":
                    fetched.append(name)
                tag = f'"{hashlib.sha1(body).hexdigest()}"'
                return self.answer(200, body, {"ETag": tag, "X-Repo-Commit": COMMIT})
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", fetched
    server.shutdown()
    server.server_close()


def fetch(name: str, cache: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's client reads its environment when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    root = str(Path(__file__).parents[2])
    return subprocess.run([sys.executable, "-c", FETCH, name, *more], capture_output=True, text=True, cwd=root, timeout=300,
                          env=kept | {"HF_HOME": str(cache), "PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | environment)


def test_only_what_is_needed_is_fetched_and_only_once(hub, repository, tmp_path) -> None:
    address, fetched = hub
    first = fetch(NAME, tmp_path, HF_ENDPOINT=address)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("said someone/a-model: downloading")
    wanted = {"unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
              "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
              "scheduler/scheduler_config.json"}  # fmt: skip
    assert {name for name in fetched if not name.startswith("tokenizer/")} == wanted
    again = fetch(NAME, tmp_path, "load", HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr
    fetched_line, *_, loaded = again.stdout.splitlines()
    assert fetched_line == first.stdout.splitlines()[-1]
    assert loaded == f"loaded like_sd_v1 {fetched_line.split()[-1]}"
    unreachable = fetch(NAME, tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.stdout == f"{fetched_line}\n"


def test_a_revision_is_another_entry_of_the_cache(hub, tmp_path) -> None:
    address, fetched = hub
    assert fetch(f"{NAME}@v2", tmp_path, HF_ENDPOINT=address).returncode == 0 and fetched
    assert fetch(f"{NAME}@v2", tmp_path, HF_HUB_OFFLINE="1").returncode == 0
    assert fetch(NAME, tmp_path, HF_HUB_OFFLINE="1").returncode == 1, "main was never fetched"
    wrong = fetch(f"{NAME}@v3", tmp_path, HF_ENDPOINT=address)
    assert wrong.stderr.startswith(f"UsageError: --base {NAME}@v3: the hub's {NAME} has no branch, tag or commit 'v3'")


def test_a_name_that_the_hub_does_not_have(hub, tmp_path) -> None:
    result = fetch("someone/else", tmp_path, HF_ENDPOINT=hub[0])
    assert result.returncode == 1 and result.stderr.startswith("UsageError: --base someone/else: is neither a file")
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_a_hub_that_cannot_be_reached(tmp_path, environment) -> None:
    result = fetch("stable-diffusion-v1-5/stable-diffusion-v1-5", tmp_path, **environment)
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("JobError: --base stable-diffusion-v1-5/stable-diffusion-v1-5: cannot be downloaded")
    assert "give --base a .safetensors file" in result.stderr


@pytest.mark.parametrize(("name", "expected"), [
    ("owner/model", True), ("owner/model-v1.5@refs/pr/3", True), ("model", False), ("./owner/model", False),
    ("~/model", False), ("a/b/c", False), ("owner\\model", False), ("owner/model.safetensors", False), ("/owner/model", False),
])  # fmt: skip
def test_only_owner_and_model_form_an_id(name: str, expected: bool) -> None:
    assert is_id(name) is expected
