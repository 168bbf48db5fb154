"""The page's parts that need no Gradio: folders, captions, options, commands, the queue, progress."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from convert.errors import JobError, UsageError
from trainer import cli
from trainer.base.facts import picture_side
from trainer.data.pictures import load_pictures
from trainer.evaluate import cli as evaluate_cli
from trainer.evaluate.gallery import Gallery
from trainer.evaluate.subjects import Subject
from trainer.page import __main__ as page_command
from trainer.page import evaluation, markup
from trainer.page.bases import checked_base, checkpoints, host_flag, hosts
from trainer.page.captions import add_trigger, caption_of, own_text, write_caption
from trainer.page.card import Card, read_card, write_card
from trainer.page.commands import Places, Wish, install, recipe_of, sheet_arguments, training_arguments, uninstall
from trainer.page.context import Context
from trainer.page.folders import Folders
from trainer.page.guard import LOOPBACK, OwnPagesOnly
from trainer.page.jobs import Job, State
from trainer.page.options import NO, OWN, YES, arguments, options
from trainer.page.pictures import look, own_pictures, thumbnail
from trainer.page.progress import curve, newest_sheet, progress_of
from trainer.page.queue import Queue
from trainer.page.training import start_training
from trainer.presets import ON_MINIATURE, PRESETS
from trainer.recipe import Recipe

PATIENCE = 300.0  # seconds; most waits take a fraction of one


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate("abc"):
        Image.new("RGB", (96, 64 + 16 * number), (40 * number, 90, 200)).save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a cat")
    (folder / "B.TXT").write_text("cat, sitting\ncat, asleep\n")
    return folder


def own(folder: Path, trigger: str = "") -> list:
    return own_pictures(load_pictures(Recipe(data=str(folder), base="miniature", trigger=trigger)))


def wait(until: Callable[[], object]) -> None:
    ends = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.02)


# folders


def test_paths_lie_in_named_folders_or_are_refused(tmp_path, pictures) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/x.png").touch()
    (pictures / "out").symlink_to(tmp_path / "secret")
    folders = Folders(tmp_path / "keep", [pictures], more=True)
    assert folders.inside(pictures / "a.png") == pictures / "a.png"
    for outside in (tmp_path / "secret/x.png", pictures / "out/x.png", pictures / "../secret", f"{pictures}2", "/etc/passwd"):
        with pytest.raises(UsageError, match="outside the folders"):
            folders.inside(outside)
    for nothing in ("", "  ", "a\0b"):
        with pytest.raises(UsageError):
            folders.inside(nothing)


def test_the_page_names_folders_on_its_own_machine_only(tmp_path, pictures) -> None:
    (tmp_path / "keep").mkdir()
    mine = Folders(tmp_path / "keep", [], more=True)
    assert mine.name(f' "{pictures}" ') == pictures
    assert Folders(tmp_path / "keep", [], more=True).inside(pictures / "a.png")  # also after a restart
    with pytest.raises(UsageError, match="whole disk"):
        mine.name(str(Path(pictures.anchor)))
    with pytest.raises(UsageError, match="no such folder"):
        mine.name(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="--folder"):
        Folders(tmp_path / "keep", [], more=False).name(str(pictures))


def test_folders_are_offered_two_levels_deep_without_hidden_ones(tmp_path) -> None:
    for name in ("a/b/c", ".hidden", "d"):
        (tmp_path / name).mkdir(parents=True)
    assert Folders(tmp_path, [tmp_path], more=False).choices() == [str(tmp_path / n) for n in ("", "a", "a/b", "d")]


# pictures and captions


def test_a_caption_written_by_the_page_is_used_in_training(pictures) -> None:
    a, b, c = own(pictures)
    assert [caption_of(p) for p in (a, b, c)] == ["a cat", "cat, sitting\ncat, asleep", ""]
    assert write_caption(c.path, " a dog\n", before="") and write_caption(b.path, "cat, awake", before=own_text(b.path))
    assert not write_caption(a.path, "a cat", before="a cat")  # it already has that text
    assert [p.captions for p in own(pictures)] == [("a cat",), ("cat, awake",), ("a dog",)]
    assert {p.name for p in pictures.iterdir()} == {"a.png", "b.png", "c.png", "a.txt", "B.TXT", "c.txt"}


def test_a_caption_changed_in_the_meantime_is_kept(pictures) -> None:
    a = own(pictures)[0]
    (pictures / "a.txt").write_text("another's")
    with pytest.raises(JobError, match="changed in the meantime"):
        write_caption(a.path, "mine", before="a cat")
    assert own_text(a.path) == "another's"


def test_the_page_overrides_a_table_of_captions_by_a_file_beside_the_picture(pictures) -> None:
    (pictures / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "from the table"}\n')
    c = own(pictures)[2]
    assert (caption_of(c), own_text(c.path)) == ("from the table", "")
    write_caption(c.path, "by hand", before="")
    assert own(pictures)[2].captions == ("by hand",)


def test_the_trigger_is_written_as_training_adds_it_and_once(pictures) -> None:
    expected = [p.captions for p in own(pictures, trigger="in inkstyle")]
    assert add_trigger(own(pictures), "in inkstyle") == 3
    assert [p.captions for p in own(pictures)] == expected
    assert add_trigger(own(pictures), "in inkstyle") == 0


def test_the_pictures_step_shows_the_dry_runs_table_and_cropped_thumbnails(pictures) -> None:
    recipe = Recipe(data=str(pictures), base="miniature", trigger="in inkstyle", crop="square")
    found = look(recipe, pictures)
    assert [row.label for row in found.table][:2] == ["pictures", "captions"] and found.count == 3
    assert [p.source for p in found.without_caption()] == ["c.png"]
    assert thumbnail(found.pictures[0], picture_side(recipe)).startswith("data:image/jpeg;base64,")
    (pictures / "d.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    assert "d.png" in look(recipe, pictures).problems[0]


# options and commands


def test_every_flag_of_the_help_is_an_option_or_the_pages_own() -> None:
    flags = {flag for action in cli.parser()._actions for flag in action.option_strings if flag.startswith("--")}
    offered = {option.flag for option in options()}
    assert {flag for flag in flags if not flag.startswith("--no-")} == offered | OWN
    assert not offered & OWN and all(option.help for option in options())


def test_options_reach_the_recipe_and_no_value_is_taken_for_a_flag() -> None:
    values = {"--rank": " 8 ", "--flip": NO, "--text-encoder": YES, "--optimizer": "prodigy", "--data-seed": "-1",
              "--alpha": "", "--targets": "--out", "--compile": "off"}  # fmt: skip
    recipe, job = recipe_of(arguments(values))
    assert (recipe.rank, recipe.flip, recipe.text_encoder, recipe.optimizer) == (8, False, True, "prodigy")
    assert (recipe.data_seed, recipe.targets, recipe.alpha, job.compile) == (-1, "--out", 0.0, "off")
    assert job.out is None


def test_the_command_shown_is_the_command_run(tmp_path, pictures) -> None:
    folders, places = Folders(tmp_path, [pictures], more=False), Places(tmp_path)
    wish = Wish(data=str(pictures), trigger="in 'ink' style", base="miniature", name="my style", samples="60",
                options={"--rank": "8"})  # fmt: skip
    argv = training_arguments(wish, folders, places)
    job = Job(tmp_path, "train", "my style", "trainer", tuple(argv), places.out("my style"), places.run("my style"), 1, 1)
    words = shlex.split(job.command)
    assert words[:3] == ["python", "-m", "trainer"] and cli.parse(words[3:]) == cli.parse(argv)
    recipe, parsed = cli.parse(argv)
    assert (recipe.trigger, recipe.base, recipe.samples, recipe.rank) == ("in 'ink' style", "miniature", 60, 8)
    assert (parsed.out, parsed.run) == (tmp_path / "my style.safetensors", tmp_path / "runs/my style")
    assert (PRESETS["style"] | ON_MINIATURE).items() - {"rank": 16, "samples": 1000}.items() <= recipe.values().items()


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a\\b", ".hidden", "a\0b", "x" * 90, "dot."])
def test_a_name_is_a_plain_file_name(tmp_path, name) -> None:
    with pytest.raises(UsageError, match="name"):
        Places(tmp_path).out(name)


@pytest.mark.parametrize("wish", [Wish(data="/etc"), Wish(base="/etc/passwd"), Wish(base="../x.safetensors"),
                                  Wish(options={"--vae": "/etc/passwd"}), Wish(options={"--init": "~/x.bin"})])
def test_no_path_in_a_request_leaves_the_folders(tmp_path, wish) -> None:
    with pytest.raises(UsageError, match="outside the folders"):
        training_arguments(Wish(**{**vars(wish), "name": "x"}), Folders(tmp_path, [tmp_path], more=False), Places(tmp_path))


def test_samples_are_spread_over_the_run(tmp_path) -> None:
    every, prompts = sheet_arguments(Places(tmp_path), "x", 40, 4, ["a cat", "a dog"])
    assert every == "--sample-every=10" and Path(prompts.partition("=")[2]).read_text() == "a cat\na dog\n"
    assert sheet_arguments(Places(tmp_path), "x", 40, 0, ["a cat"]) == sheet_arguments(Places(tmp_path), "x", 2, 4, ["a"]) == []


def checkpoint(path: Path, *, channels: int = 4, width: int = 768) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    block = "model.diffusion_model.input_blocks"
    save_file({f"{block}.0.0.weight": np.zeros((320, channels, 3, 3), np.float16),
               f"{block}.1.1.transformer_blocks.0.attn2.to_k.weight": np.zeros((320, width), np.float16)}, path)  # fmt: skip
    return path


def test_the_checkpoints_of_a_host_are_those_of_sd15(tmp_path) -> None:
    ui, comfy = tmp_path / "ui", tmp_path / "portable"
    wanted = checkpoint(ui / "models/Stable-diffusion/sub/good.safetensors")
    checkpoint(ui / "models/Stable-diffusion/inpainting.safetensors", channels=9)
    checkpoint(ui / "models/Stable-diffusion/sd2.safetensors", width=1024)
    (ui / "models/Stable-diffusion/cut.safetensors").write_bytes(b"\1")
    inner = checkpoint(comfy / "ComfyUI/models/checkpoints/anime.safetensors")
    assert checkpoints(ui) == [wanted] and checkpoints(comfy) == [inner]
    assert (host_flag(ui), host_flag(comfy), host_flag(tmp_path)) == ("--webui", "--comfyui", "")
    with pytest.raises(UsageError, match="web UI"):
        checkpoints(tmp_path)
    folders = Folders(tmp_path, [ui], more=False)
    assert checked_base(str(wanted), folders) == str(wanted) and checked_base("someone/model@v1", folders) == "someone/model@v1"


# the queue


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """Modules that a queue can run: each appends its actions to the file in its first argument."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "quick.py").write_text("import sys\nopen(sys.argv[1], 'a').write(sys.argv[2])\nsys.exit(int(sys.argv[3]))")
    (modules / "patient.py").write_text(
        "import signal, sys, time\nfrom pathlib import Path\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(130)))\n"
        "open(sys.argv[1], 'a').write('<')\nprint('at work', flush=True)\n"
        "while not Path(sys.argv[2]).exists(): time.sleep(0.02)\nopen(sys.argv[1], 'a').write('>')\n")  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(modules), *sys.path]))
    return tmp_path / "done.txt"


def put(queue: Queue, module: str, *argv: object, out: str) -> Job:
    return queue.add(kind="train", name=out, module=module, argv=[str(word) for word in argv], out=Path(out), run=Path("run"),
                     total=1, per_step=1)  # fmt: skip


def settle(queue: Queue, job: Job, *states: State) -> None:
    def there() -> bool:
        queue.tick()
        return queue.state(job) in states

    wait(there)


def test_one_command_runs_at_a_time_in_the_order_given(tmp_path, commands) -> None:
    queue, gate = Queue(tmp_path / "queue"), tmp_path / "gate"
    first = put(queue, "patient", commands, gate, out="a")
    second, third = put(queue, "quick", commands, "2", 0, out="b"), put(queue, "quick", commands, "3", 7, out="c")
    settle(queue, first, State.RUNNING)
    wait(lambda: commands.exists())
    queue.tick()
    assert [queue.state(job) for job in (first, second, third)] == [State.RUNNING, State.WAITING, State.WAITING]
    with pytest.raises(UsageError, match="already in the queue"):
        put(queue, "quick", commands, "x", 0, out="a")
    with pytest.raises(UsageError, match="stop it first"):
        queue.remove(first)
    gate.touch()
    settle(queue, third, State.FAILED)
    assert commands.read_text() == "<>23" and queue.state(second) is State.DONE and first.said().startswith("at work")
    assert [job.name for job in queue.finished()] == ["b", "a"]


def test_a_stop_is_passed_on_and_the_same_command_continues_later(tmp_path, commands) -> None:
    queue, gate = Queue(tmp_path / "queue"), tmp_path / "gate"
    job = put(queue, "patient", commands, gate, out="a")
    settle(queue, job, State.RUNNING)
    wait(lambda: "at work" in job.said())
    queue.stop(job)
    settle(queue, job, State.STOPPED)
    assert job.last_line() == "saved" and job.status() == 130
    gate.touch()
    other = put(queue, "quick", commands, "2", 0, out="b")
    queue.again(job)
    assert queue.jobs() == [other, job]  # it left the queue
    settle(queue, job, State.DONE)
    assert commands.read_text() == "<2<>"
    with pytest.raises(UsageError, match="can be resumed"):
        queue.again(job)
    queue.remove(job)
    queue.remove(other)
    assert queue.jobs() == []


STARTS_ONE = """
import sys, time
from pathlib import Path
from tests.trainer.test_page import put
from trainer.page.queue import Queue

queue = Queue(Path(sys.argv[1]))
put(queue, "patient", *sys.argv[2:], out="a")
queue.tick()
time.sleep(99)
"""


def test_a_command_outlives_the_page_that_started_it(tmp_path, commands) -> None:
    """The page is killed; the next one finds the command running, starts no other, and sees how it ended."""
    gate = tmp_path / "gate"
    words = [sys.executable, "-c", STARTS_ONE, tmp_path / "queue", commands, gate]
    page = subprocess.Popen(words, cwd=Path(__file__).parents[2])
    wait(lambda: commands.exists())
    page.send_signal(signal.SIGKILL)
    page.wait()
    queue = Queue(tmp_path / "queue")
    job, later = queue.jobs()[0], put(queue, "quick", commands, "2", 0, out="b")
    queue.tick()
    assert (queue.state(job), queue.state(later)) == (State.RUNNING, State.WAITING)
    gate.touch()
    settle(queue, later, State.DONE)
    assert queue.state(job) is State.DONE and commands.read_text() == "<>2"


def test_a_power_cut_is_distinguished_from_an_end(tmp_path, commands) -> None:
    queue = Queue(tmp_path / "queue")
    job = put(queue, "patient", commands, tmp_path / "gate", out="a")
    (job.folder / "started").touch()
    assert Queue(tmp_path / "queue").state(job) is State.INTERRUPTED
    queue.again(job)
    settle(queue, job, State.RUNNING)
    queue.stop(job)
    settle(queue, job, State.STOPPED)


def test_a_folder_without_a_job_is_reported_once_and_left_alone(tmp_path) -> None:
    told: list[str] = []
    queue = Queue(tmp_path / "queue", told.append)
    (tmp_path / "queue/odd").mkdir()
    damaged = tmp_path / f"queue/{1:020d}-abcd"
    damaged.mkdir()
    (damaged / "job.json").write_text('{"kind": 3}')
    assert queue.jobs() == queue.jobs() == [] and len(told) == 1 and damaged.name in told[0]
    assert queue.find("../../etc") is None and queue.find(None) is None


# progress and results


def test_time_left_is_the_remaining_pictures_divided_by_their_rate(tmp_path) -> None:
    job = Job(tmp_path, "train", "x", "trainer", (), tmp_path / "x", tmp_path, total=100, per_step=4)
    lines = [{"step": k, "loss": 0.5, "pictures_per_second": 2.0} for k in range(1, 41)] + [{"step": 40, "held_out_loss": 0.4}]
    progress = progress_of(job, lines)
    assert progress.seconds_left == 60 * 4 / 2.0 and progress.text == "step 40 of 100, loss 0.5000, about 2 minutes left"
    assert progress_of(job, []).text == "step 0 of 100"
    assert progress_of(job, lines[:3]).seconds_left is None  # the first step compiles


def evaluated(tmp_path: Path, queue: Queue, *argv: str, name: str = "mine") -> Job:
    """An evaluation job that has not started."""
    lora = Job(tmp_path, "train", name, "trainer", argv, tmp_path / f"{name}.safetensors", tmp_path, 1, 1)
    words = evaluation.arguments(lora, " 0,1 ", 3)
    out = evaluation.report_folder(Places(tmp_path), queue, name, words)
    return queue.add(kind="evaluate", name=name, module="trainer.evaluate", argv=[*words, f"--out={out}"], out=out,
                     run=tmp_path, total=0, per_step=0)  # fmt: skip


def test_an_evaluation_gets_the_trainings_options_and_a_folder_of_its_own(tmp_path) -> None:
    queue = Queue(tmp_path / "queue")
    job = evaluated(tmp_path, queue, "--out=x", "--data=pics", "--base=miniature", "--trigger=in ink", "--rank=8",
                    "--device=cpu")  # fmt: skip
    settings, asked = evaluate_cli.parse(job.argv)
    assert (settings.scale_list, settings.per_scale, asked.device) == ([0, 1], 3, "cpu")
    assert asked.out == tmp_path / "reports/mine"
    assert asked.changed == {"data": "pics", "more_data": (), "base": "miniature", "trigger": "in ink", "held_out": 0.5}
    kept_back = evaluated(tmp_path, queue, "--data=pics", "--held-out=0.3")  # other arguments: not the same report
    job.out.mkdir(parents=True)
    assert kept_back.out.name == "mine-2"
    assert evaluate_cli.parse(kept_back.argv)[1].changed["held_out"] == 0.3
    other = evaluation.report_folder(Places(tmp_path), queue, "mine", ["another"])
    assert other.name == "mine-3"
    assert evaluation.report_folder(Places(tmp_path), queue, "mine", job.argv[:-1]) == job.out  # it continues
    assert "--held-out" not in " ".join(evaluated(tmp_path, queue, "--preset=demo", name="demo").argv)


def test_an_evaluation_shows_its_progress(tmp_path, capsys) -> None:
    """From the output of `Gallery`, and the existing pictures."""
    job = evaluated(tmp_path, Queue(tmp_path / "queue"))
    assert evaluation.progress_of(job).step == 0
    subjects = [Subject("cat", "a cat", seed, "a cat") for seed in range(15)]

    class Painter:
        steps = 2

        def __call__(self, prompts: list[str], seeds: list[int], scale: list[float]) -> np.ndarray:
            return np.zeros((len(seeds), 8, 8, 3), np.uint8)

    (job.folder / "started").touch()
    gallery = Gallery(job.out / "pictures", Painter(), 4)
    gallery.draw(subjects[:2], [0, 1])
    gallery.draw(subjects, [0, 1])
    job.log.write_text(capsys.readouterr().out)
    pictures = sorted((job.out / "pictures").iterdir())
    for k, picture in enumerate(pictures[:20]):
        os.utime(picture, (k * 2.0 + 2e9, k * 2.0 + 2e9))
    for picture in pictures[20:]:
        picture.unlink()
    progress = evaluation.progress_of(job)
    assert progress.text == "picture 20 of 30, about 20 seconds left" and progress.seconds_left == 10 * 2.0
    shown = markup.progress_bar(job, State.RUNNING, progress)
    assert 'max="30"' in shown and 'value="20"' in shown and "mine: evaluate" in shown


def test_only_a_finished_evaluations_scale_can_be_used(tmp_path) -> None:
    with pytest.raises(UsageError, match="when it is done"):
        evaluation.take(evaluated(tmp_path, Queue(tmp_path / "queue")))


def test_the_curve_is_an_svg_with_its_numbers_in_words() -> None:
    drawn = ElementTree.fromstring(curve([{"step": k, "loss": 1.0 - k / 1000} for k in range(1, 901)]))
    points = drawn.findall("polyline")[0].get("points", "").split()
    assert 200 <= len(points) <= 300 and "at step 900" in drawn.get("aria-label", "")
    heights = [float(point.partition(",")[2]) for point in points]
    assert heights == sorted(heights)  # the loss falls, and y grows downwards
    assert curve([{"step": 1, "loss": 1.0}]) == ""


def test_the_sheet_of_own_prompts_goes_before_previews(tmp_path) -> None:
    (tmp_path / "samples").mkdir()
    assert newest_sheet(tmp_path) is None
    for name in ("step-000010.png", "step-000020.png"):
        (tmp_path / "samples" / name).touch()
    assert newest_sheet(tmp_path) == tmp_path / "samples/step-000020.png"
    (tmp_path / "samples/sheet.png").touch()
    assert newest_sheet(tmp_path) == tmp_path / "samples/sheet.png"


def test_the_card_editor_keeps_what_it_does_not_show(tmp_path) -> None:
    lora = tmp_path / "x.safetensors"
    lora.with_suffix(".json").write_text('{"sd version": "SD1", "mine": 1, "preferred weight": 0.8}')
    assert read_card(lora) == Card("", 0.8, "", "")
    write_card(lora, Card(" in inkstyle ", 0.6, "drawn", "mine"))
    assert read_card(lora) == Card("in inkstyle", 0.6, "drawn", "mine")
    assert '"mine": 1' in lora.with_suffix(".json").read_text()
    with pytest.raises(UsageError, match="expected 0"):
        write_card(lora, Card("", 3.0, "", ""))


def test_install_py_puts_a_lora_where_a_web_ui_looks_and_refuses_in_its_own_words(tmp_path) -> None:
    ui = tmp_path / "ui"
    for folder in ("modules", "extensions", "models/Lora", "models/Stable-diffusion"):
        (ui / folder).mkdir(parents=True)
    for file in ("webui.py", "modules/scripts.py"):
        (ui / file).touch()
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    lora = tmp_path / "mine.safetensors"
    save_file({f"{module}.lora_down.weight": np.ones((4, 320), np.float16), f"{module}.alpha": np.array(4, np.float16),
               f"{module}.lora_up.weight": np.ones((320, 4), np.float16)}, lora)  # fmt: skip
    ended = install(host_flag(ui), ui, lora)
    assert not ended.error and (ui / "models/Lora/mine.safetensors").read_bytes() == lora.read_bytes()
    assert (ui / "extensions/scribble-lora").exists()
    ended = uninstall("--webui", ui)
    assert not ended.error and str(ui / "models/Lora/mine.safetensors") in ended.printed
    assert not list((ui / "models/Lora").iterdir()) and not list((ui / "extensions").iterdir()) and lora.exists()
    assert hosts(Folders(tmp_path, [ui, tmp_path], more=False)) == [str(ui)]
    lora.write_bytes(b"cut off")
    assert "install.py: --lora" in install("--webui", ui, lora).error


# access to the server, and the command


@pytest.mark.parametrize(("host", "origin", "allowed"), [
    ("127.0.0.1:7870", "", True), ("localhost:7870", "http://localhost:7870", True), ("[::1]:7870", "", True),
    ("evil.example:7870", "", False), ("evil.example:7870", "http://evil.example:7870", False),  # DNS rebinding
    ("127.0.0.1:7870", "http://evil.example", False), ("127.0.0.1:7870", "null", False), ("", "", False)])  # fmt: skip
def test_only_the_servers_own_pages_are_served(host, origin, allowed) -> None:
    assert OwnPagesOnly(None, LOOPBACK).allows(host, origin) is allowed


def test_a_missing_gradio_is_one_line(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.setattr(page_command.importlib.util, "find_spec", lambda name: None)
    assert page_command.main(["--work", str(tmp_path)]) == 1
    assert "pip install -e '.[page]'" in capsys.readouterr().err
    assert page_command.main(["--folder", str(tmp_path / "none")]) == 2


def test_a_folder_becomes_a_lora_through_the_pages_queue(tmp_path, pictures) -> None:
    from tests.trainer.small_run import write_base

    base = write_base(tmp_path / "base")
    page = Context(Folders(tmp_path, [pictures, tmp_path], more=False), Queue(tmp_path / "queue"), Places(tmp_path / "loras"),
                   tmp_path / "cache")  # fmt: skip
    page.places.work.mkdir()
    wish = Wish(data=str(pictures), trigger="in inkstyle", base=str(base), name="mine",
                options={"--steps": "2", "--device": "cpu", "--preview": NO})  # fmt: skip
    job = start_training(page, wish)
    assert (job.total, job.per_step) == (2, 3)
    settle(page.queue, job, State.DONE, State.FAILED)
    assert page.queue.state(job) is State.DONE, job.said()
    assert read_card(job.out).words == "in inkstyle" and job.out.exists()
