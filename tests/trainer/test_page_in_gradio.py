"""The page itself, if Gradio is installed."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[page]'")

from convert.errors import UsageError  # noqa: E402
from trainer.page import reports, step_result  # noqa: E402
from trainer.page.commands import Places, Wish  # noqa: E402
from trainer.page.context import Context  # noqa: E402
from trainer.page.folders import Folders  # noqa: E402
from trainer.page.jobs import Job  # noqa: E402
from trainer.page.page import build  # noqa: E402
from trainer.page.queue import Queue  # noqa: E402
from trainer.page.server import serve, theme  # noqa: E402
from trainer.page.step_pictures import Handlers, Shown  # noqa: E402
from trainer.page.step_recipe import LABELS, RecipeStep  # noqa: E402
from trainer.page.step_train import Watcher  # noqa: E402
from trainer.presets import PRESETS  # noqa: E402


@pytest.fixture
def page(tmp_path: Path) -> Context:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a", "<b>"):
        Image.new("RGB", (80, 64), (200, 90, 10)).save(pictures / f"{name}.png")
    (pictures / "a.txt").write_text("a <script>cat</script>")
    return Context(Folders(tmp_path, [pictures], more=False), Queue(tmp_path / "queue"), Places(tmp_path), tmp_path / "cache")


def test_every_control_has_a_label(page) -> None:
    controls = [block for block in build(page).blocks.values() if block.get_config().get("name") in
                ("textbox", "dropdown", "radio", "checkbox", "slider", "number")]  # fmt: skip
    assert len(controls) > 60 and all(control.label for control in controls)
    buttons = [block for block in build(page).blocks.values() if block.get_config().get("name") == "button"]
    assert len(buttons) > 10 and all(button.value for button in buttons)
    assert set(LABELS) == set(PRESETS)


@pytest.mark.parametrize("kind", ["", "_dark", "_hover", "_hover_dark"])
def test_white_text_on_primary_buttons_is_readable(kind) -> None:
    """WCAG 2's contrast, at least 4.5."""
    looks = theme()
    fill = getattr(looks, getattr(looks, f"button_primary_background_fill{kind}").removeprefix("*"))
    parts = [int(fill[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    assert 1.05 / (0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05) >= 4.5


def test_usage_errors_are_shown_and_nothing_else_changes(page) -> None:
    handlers = Handlers(page)
    said, *others = handlers.show("/etc", "", "style", "miniature", "all")
    assert "outside the folders" in said and len({str(other) for other in others}) == 1
    said, *_ = handlers.save(Shown(), *[""] * 8)
    assert "0 captions" in said


def test_captions_are_shown_as_text_and_saved_beside_the_picture(page, tmp_path) -> None:
    handlers, folder = Handlers(page), str(tmp_path / "pictures")
    said, table, shown, *_ = handlers.show(folder, "in inkstyle", "style", "miniature", "all")
    assert "2 pictures, 1 without a caption" in said and "<b>" not in table and "&lt;b&gt;.png" in table
    said, shown = handlers.save(shown, "a dog", "a <script>cat</script>", *[""] * 6)
    assert "1 caption written" in said and (tmp_path / "pictures/<b>.txt").read_text() == "a dog\n"
    (tmp_path / "pictures/a.txt").write_text("another tab's")
    said, _ = handlers.save(shown, "a dog", "mine", *[""] * 6)
    assert "0 captions" in said and "changed in the meantime" in said


def test_only_changes_are_sent_to_a_tab(page, tmp_path) -> None:
    watcher = Watcher(page)
    first = watcher.look(None, {})
    assert "Nothing has been started" in first[0]
    second = watcher.look(None, first[-1])
    assert len({str(view) for view in second}) == 1  # nothing
    page.queue.add(kind="train", name="x<y", module="trainer", argv=[], out=tmp_path / "x", run=tmp_path, total=5, per_step=1)
    third = watcher.look(None, first[-1])
    assert "x&lt;y" in third[0] and third[-1]["chosen"][0] == page.queue.jobs()[0].id


def test_the_newest_drawing_of_a_lora_is_shown_once(page, tmp_path) -> None:
    out, job = tmp_path / "x.png", dict(name="x", argv=[], run=tmp_path, total=0, per_step=0)
    Image.new("RGB", (8, 8)).save(out)
    lora = page.queue.add(kind="train", module="trainer", out=tmp_path / "x.safetensors", **job)
    sample = page.queue.add(kind="sample", module="trainer.sample", out=out, **job)
    for done in (lora, sample):
        (done.folder / "exit.json").write_text('{"status": 0}')
    results = step_result.Handlers(page)
    offered, shown, _, seen = results.refresh(lora.id, ([], "", ""))
    assert lora.id in str(offered) and "x: sample: done" in shown and "data:image/jpeg" in shown
    assert len({str(view) for view in results.refresh(lora.id, seen)}) == 1  # nothing


def report_job(page: Context, name: str = "x") -> Job:
    out = page.places.report(name)
    return page.queue.add(kind="evaluate", name=name, module="trainer.evaluate", argv=["x.safetensors", f"--out={out}"],
                          out=out, run=out, total=0, per_step=0)  # fmt: skip


def test_a_finished_evaluation_shows_its_verdict_and_figures(page, tmp_path) -> None:
    training = page.queue.add(kind="train", name="x", module="trainer", argv=[], out=tmp_path / "x", run=tmp_path, total=5,
                              per_step=1)  # fmt: skip
    (training.folder / "exit.json").write_text('{"status": 0}')
    results, job = step_result.Handlers(page), report_job(page)
    job.log.write_text("drawing: 3 of 30 pictures")
    _, _, shown, seen = results.refresh(training.id, ([], "", ""))
    assert "waiting" in shown
    said, *_ = results.take(training.id)
    assert "when it is done" in said
    job.out.mkdir(parents=True)
    found = {"scale": 0.6, "low": 0.5, "high": 0.8, "best": 0.7, "gain": {"mean": 0.1, "low": 0.05, "high": 0.15},
             "categories": 9, "verdict": "best"}  # fmt: skip
    (job.out / "report.json").write_text(json.dumps({"groups": {}, "recommended": found, "warnings": ["a <b> line"]}))
    (job.out / "index.html").write_text("<!doctype html>")
    Image.new("RGB", (8, 8)).save(job.out / "figure-11-similarity.png")
    (job.folder / "exit.json").write_text('{"status": 0}')
    _, _, shown, seen = results.refresh(training.id, seen)
    assert "Use scale 0.6" in shown and "a &lt;b&gt; line" in shown and "data:image/jpeg" in shown
    assert f'href="{reports.address(job.id)}index.html"' in shown
    assert len({str(view) for view in results.refresh(training.id, seen)}) == 1  # nothing


def test_a_report_is_served_by_its_address_and_nothing_else_is(page, address, tmp_path) -> None:
    job = report_job(page)
    (job.out / "pictures").mkdir(parents=True)
    (job.out / "index.html").write_text("the report")
    Image.new("RGB", (8, 8)).save(job.out / "pictures/a b.png")
    (tmp_path / "secret.json").write_text("{}")
    (job.out / "link.json").symlink_to(tmp_path / "secret.json")
    (job.out / ".lock").touch()
    base = f"{address}{reports.address(job.id)}"
    with urllib.request.urlopen(f"{base}index.html") as answer:
        assert answer.read() == b"the report" and answer.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in " ".join(answer.headers.get_all("content-security-policy"))
    with urllib.request.urlopen(f"{base}pictures/a%20b.png") as answer:
        assert answer.read() == (job.out / "pictures/a b.png").read_bytes()
    training = page.queue.add(kind="train", name="y", module="trainer", argv=[], out=tmp_path, run=tmp_path, total=1,
                              per_step=1)  # fmt: skip
    for wrong in (f"{base}link.json", f"{base}../../secret.json", f"{base}%2e%2e/%2e%2e/secret.json", f"{base}.lock", base,
                  f"{base}/etc/passwd", f"{base}a%00.json", f"{address}{reports.address(training.id)}secret.json",
                  f"{address}/report/guess/{job.id}/index.html", f"{address}/report/"):  # fmt: skip
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(wrong)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(f"{base}index.html", headers={"Host": "evil.example"}))


def test_presets_with_drawings_need_no_folder(page) -> None:
    step = RecipeStep(None, None, [], [], None)  # type: ignore[arg-type]
    assert step.wish("", "", "demo", "any", "x", "", 0, "").base == ""
    assert step.wish("", "", "paper", "own.safetensors", "x", "", 0, "").base == "own.safetensors"
    with pytest.raises(UsageError, match="no folder of pictures"):
        step.wish("", "", "style", "any", "x", "", 0, "")


def test_a_reopened_page_shows_the_last_trainings_options() -> None:
    step = RecipeStep(None, None, [], ["--rank", "--flip"], None)  # type: ignore[arg-type]
    wish = Wish(data="pictures", preset="character", name="x", sheets=0, options={"--flip": "no"})
    shown = step.values(json.loads(json.dumps(asdict(wish))))
    assert [shown[k] for k in (0, 2, 4, 6, 8, 9)] == ["pictures", "character", "x", 0, "", "no"]
    assert step.values({})[-2:] == ["", ""]


@pytest.fixture
def address(page, request) -> Iterator[str]:
    """A page that listens on 127.0.0.1, or on the test's address."""
    host = getattr(request, "param", "127.0.0.1")
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    stop = threading.Event()
    server = threading.Thread(target=serve, args=(page,), kwargs=dict(host=host, port=port, browser=False, stop=stop))
    server.start()
    address = f"http://{host}:{port}"
    for _ in range(600):
        try:
            urllib.request.urlopen(address).close()
            break
        except OSError:
            server.join(0.1)
    yield address
    stop.set()
    server.join()


def test_the_server_serves_only_its_own_page_and_sends_no_telemetry(address) -> None:
    with urllib.request.urlopen(f"{address}/config") as answer:
        config = json.load(answer)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert config["analytics_enabled"] is False and not config.get("is_colab")
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(f"{address}/config", headers=headers))
    for path in ("gradio_api/file=/etc/passwd", f"gradio_api/file={Path(__file__)}"):
        with pytest.raises(urllib.error.HTTPError, match="40[34]"):
            urllib.request.urlopen(f"{address}/{path}")


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is this machine on Linux only")
@pytest.mark.parametrize("address", ["127.0.0.2"], indirect=True)
def test_on_any_other_address_it_asks_for_a_password(address, capsys) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/config")
    printed = ""
    while not (found := re.search(r"user (\w+), password ([\w-]+)", printed)):
        time.sleep(0.05)
        printed += capsys.readouterr().out
    user, password = found.groups()
    login = urllib.request.Request(f"{address}/login", data=f"username={user}&password={password}".encode())
    with urllib.request.urlopen(login) as answer:
        cookie = answer.headers["set-cookie"].partition(";")[0]
    with urllib.request.urlopen(urllib.request.Request(f"{address}/config", headers={"Cookie": cookie})) as answer:
        assert answer.status == 200
