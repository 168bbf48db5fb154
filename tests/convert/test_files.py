"""Atomic writing: whole or not at all, and no loss of the user's files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import convert
from convert.files import atomic_path, write_bytes, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]


def test_the_temporary_lies_beside_and_vanishes(tmp_path):
    with atomic_path(tmp_path / "a.txt") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".a.txt.")
        assert temporary.name.endswith(".part")
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists()
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are not asked to write early")
def test_the_tensors_of_a_large_file_are_written_to_disk_on_the_way(maker, tmp_path, monkeypatch):
    source = maker.write(tmp_path / "b.safetensors", "kohya", maker.attention("unet")[:4])
    expected = convert.convert_bytes(source)
    asked = []
    monkeypatch.setattr("convert.stream.WRITTEN_EARLY", 64)
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, length, advice: asked.append((start, start + length)))
    (tmp_path / "out").mkdir()
    convert.convert_file(source, tmp_path / "out" / "b.safetensors")
    assert (tmp_path / "out" / "b.safetensors").read_bytes() == expected
    assert len(asked) > 1 and all(end == start for (_, end), (start, _) in zip(asked, asked[1:], strict=False))
    assert asked[0][0] == 8 + int.from_bytes(expected[:8], "little") and asked[-1][1] <= len(expected)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, convert.JobError])
def test_a_failure_leaves_the_old_file_and_nothing_else(error, tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error("stop")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_writers(tmp_path):
    write_bytes(tmp_path / "b", b"\x00\xff")
    write_text(tmp_path / "t", "ü\n")
    write_json(tmp_path / "j", {"ü": [1]})
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t").read_bytes() == b"\xc3\xbc\n"
    assert (tmp_path / "j").read_bytes() == '{\n  "ü": [\n    1\n  ]\n}\n'.encode()


@pytest.mark.parametrize("target", ["none/a.txt", "."])
def test_a_file_that_cannot_be_written_is_one_line(target, tmp_path):
    with pytest.raises(convert.JobError, match="cannot be written") as caught:
        write_text(tmp_path / target, "x")
    assert "\n" not in str(caught.value)


def test_a_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(convert.JobError, match="No space left"), atomic_path(tmp_path / "a") as temporary:
        temporary.touch()
        with open("/dev/full", "w") as file:
            file.write("x")
            file.flush()


def test_an_error_of_another_file_does_not_name_the_target(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "other").read_bytes()


def test_a_symbolic_link_is_kept(tmp_path):
    (tmp_path / "real").write_text("old")
    try:
        (tmp_path / "link").symlink_to(tmp_path / "real")
    except OSError:
        pytest.skip("no links here")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_target_that_a_host_holds_open_is_kept_and_the_new_file_named(tmp_path, monkeypatch):
    """As on Windows, where os.replace onto an open file raises PermissionError."""
    target, replace = tmp_path / "lora.safetensors", os.replace
    write_text(target, "old")

    def held(source, destination):
        if Path(destination) == target:
            raise PermissionError(13, "Access is denied", str(destination))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", held)
    for number, name in enumerate(("lora.new.safetensors", "lora.new-2.safetensors")):
        with pytest.raises(convert.JobError, match=name.replace(".", r"\.")):
            write_text(target, f"new {number}")
        assert (tmp_path / name).read_text() == f"new {number}"
    assert target.read_text() == "old"
    assert len(os.listdir(tmp_path)) == 3


def test_conversion_onto_the_input_by_any_path_is_refused(maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:1])
    os.link(source, tmp_path / "same.safetensors")
    before = source.read_bytes()
    with pytest.raises(convert.UsageError, match="is the input itself"):
        convert.convert_file(source, tmp_path / "same.safetensors", overwrite=True)
    convert.convert_file(source, tmp_path / "p", to="peft")
    with pytest.raises(convert.UsageError, match="input"):
        convert.convert_file(tmp_path / "p", tmp_path / "p", to="peft", overwrite=True)
    with pytest.raises(convert.UsageError, match="input"):
        convert.convert_file(tmp_path / "p", tmp_path / "p" / "adapter_model.safetensors", overwrite=True)
    assert source.read_bytes() == before


def test_a_failed_folder_leaves_nothing(maker, tmp_path, monkeypatch):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention())
    from convert import api

    def fail(path, obj):
        raise convert.JobError("stop")

    monkeypatch.setattr(api, "write_json", fail)
    with pytest.raises(convert.JobError, match="stop"):
        convert.convert_file(source, tmp_path / "out", to="peft")
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_a_source_that_vanishes_or_shrinks_while_it_is_read(maker, tmp_path, monkeypatch):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:9])
    from convert import api

    def replace():  # by another LoRA of the same size
        maker.write(tmp_path / "other", "kohya", maker.attention("unet")[9:18])
        os.replace(tmp_path / "other", source)

    harms = ((lambda: os.truncate(source, 30_000), "replaced"), (source.unlink, "no such file"), (replace, "replaced"))
    for harm, said in harms:
        lora = convert.read(source)

        def read(path, lora=lora, harm=harm, **_):
            harm()
            return lora

        monkeypatch.setattr(api, "read", read)
        before = set(os.listdir(tmp_path))
        with pytest.raises(convert.JobError, match=said):
            convert.convert_file(source, tmp_path / "out.safetensors")
        assert set(os.listdir(tmp_path)) <= before
        monkeypatch.undo()
        maker.write(source, "kohya", maker.attention("unet")[:9])


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "nul\0byte", "no/such/folder/x.safetensors"])
def test_impossible_names(name, maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:1])
    with pytest.raises(convert.JobError):
        convert.read(tmp_path / name)
    for form in ("kohya", "peft"):
        with pytest.raises((convert.JobError, convert.UsageError)):
            convert.convert_file(source, tmp_path / name, to=form)
    assert os.listdir(tmp_path) == ["in.safetensors"]


def test_the_old_files_permissions_are_kept(tmp_path):
    write_text(tmp_path / "a", "old")
    os.chmod(tmp_path / "a", 0o600)
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


KILLED = """
import os, signal, sys
from pathlib import Path
from convert.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
@pytest.mark.parametrize("name", ["a.txt", "x" * 240, "ü[*].txt"])
def test_what_a_killed_process_left_is_removed_by_the_next_that_writes_the_same_file(name, tmp_path):
    write_text(tmp_path / "neighbour.txt", "kept")
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], cwd=ROOT, check=False)
        assert len(os.listdir(tmp_path)) == 2  # the second has removed what the first left
    with atomic_path(tmp_path / name) as mine:  # of a process that runs: ours
        mine.write_text("mine")
        write_text(tmp_path / name, "new")
        assert mine.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == sorted([name, "neighbour.txt"])


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job is started with it ignored
for name in {"SIGHUP", "SIGTERM"} & set(dir(signal)):
    signal.signal(getattr(signal, name), signal.SIG_DFL)
from convert import cli, stream
real = stream._stream
def slow(outputs):
    for number, item in enumerate(real(outputs)):
        if number == 3:
            print("writing", flush=True)
            time.sleep(60)
        yield item
stream._stream = slow
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGHUP")
@pytest.mark.parametrize("form", ["kohya", "peft"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL], ids=str)
def test_a_killed_conversion_leaves_nothing(number, form, maker, tmp_path):
    source = maker.write(tmp_path / "in.safetensors", "kohya", maker.attention("unet")[:9])
    target = tmp_path / ("out" if form == "peft" else "out.safetensors")
    command = [sys.executable, "-c", SLOW, str(source), str(target), "--to", form]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.send_signal(number)
        status, said = process.wait(30), process.stderr.read()
    if number != signal.SIGKILL:
        assert (status, said) == (128 + number, "convert: stopped\n") and os.listdir(tmp_path) == ["in.safetensors"]
    convert.convert_file(source, target, to=form)
    assert not list(tmp_path.rglob("*.part")) and len(os.listdir(tmp_path)) == 2
