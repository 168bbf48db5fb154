"""ΔW of every network against LyCORIS's own code; reduce, merge and extract against other libraries' linear algebra."""

import json

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import convert
from convert import extract as extracting
from convert import merge as merging
from convert import reduce as reducing
from convert.bake import bake
from convert.bake import main as baking
from convert.check import table
from convert.matrix.change import Product, change
from convert.matrix.low_rank import Limit, norm, reduced
from convert.matrix.network import read_network
from convert.sd15 import modules

LINEAR = modules()["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"]  # (320, 768)
CONV = modules()["down_blocks.0.resnets.0.conv1"]  # (320, 320, 3, 3)


def _name(module):
    return "lora_unet_" + module.name.replace(".", "_")


def _layer(module):
    torch.manual_seed(1)
    if len(module.shape) == 2:
        return torch.nn.Linear(module.shape[1], module.shape[0], bias=False)
    return torch.nn.Conv2d(module.shape[1], module.shape[0], module.shape[2:], padding=1, bias=False)


KINDS = [
    ("LoConModule", {}), ("LoConModule", {"use_tucker": True}), ("LoConModule", {"weight_decompose": True}),
    ("LoConModule", {"weight_decompose": True, "wd_on_out": False}), ("LohaModule", {}), ("LohaModule", {"use_tucker": True}),
    ("LohaModule", {"weight_decompose": True}), ("LokrModule", {}), ("LokrModule", {"decompose_both": True, "factor": 16}),
    ("LokrModule", {"full_matrix": True}), ("LokrModule", {"use_tucker": True, "factor": 4}),
    ("LokrModule", {"weight_decompose": True, "factor": 8}), ("GLoRAModule", {}), ("IA3Module", {}),
    ("IA3Module", {"train_on_input": True}), ("DiagOFTModule", {}), ("DiagOFTModule", {"rescaled": True, "constraint": 1e-3}),
    ("ButterflyOFTModule", {"lora_dim": 10}), ("ButterflyOFTModule", {"lora_dim": 10, "rescaled": True}), ("FullModule", {}),
]  # fmt: skip


@pytest.mark.parametrize("module", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=lambda value: "-".join(value) if isinstance(value, dict) else value)
def test_the_change_is_lycoris_own(kind, settings, module, tmp_path):
    lycoris = pytest.importorskip("lycoris.modules", reason="lycoris-lora is not installed (it is in the test extra)")
    layer = _layer(module)
    theirs = getattr(lycoris, kind)("x", layer, 1.0, **{"lora_dim": 4, "alpha": 2, **settings})
    draw = torch.Generator().manual_seed(2)
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        parameter.data = parameter.data * (1 + 0.1 * noise) if name in ("dora_scale", "rescale") else 0.3 * noise
    weight = layer.weight.detach().clone()
    x = torch.randn(7, module.shape[1], *(5 for _ in module.shape[2:]), generator=draw)
    with torch.no_grad():
        before = layer(x)
        theirs.apply_to()
        trained = layer(x)
    state = {f"{_name(module)}.{key}": value.detach().contiguous() for key, value in theirs.state_dict().items()}
    save_file(state, tmp_path / "in.safetensors")
    found = change(read_network(tmp_path / "in.safetensors").modules[module.name], weight.numpy())
    matrix = torch.from_numpy(found.matrix() if isinstance(found, Product) else found).reshape(module.shape)
    ours = torch.nn.functional.conv2d(x, weight + matrix, padding=1) if x.ndim == 4 else x @ (weight + matrix).T
    assert (trained - before).norm() > 1e-3 * before.norm()
    assert (ours - trained).norm() <= 1e-5 * (trained - before).norm() + 1e-6 * trained.norm()


def _factors(rank, seed=0, alpha=None, module=LINEAR, decay=1.0):
    """A LoRA's tensors whose singular values fall by `decay`."""
    draw = torch.Generator().manual_seed(seed)
    up = torch.randn(module.shape[0], rank, generator=draw) * decay ** torch.arange(rank)
    down = torch.randn(rank, *module.shape[1:], generator=draw) / 30
    tensors = {"lora_up": up.reshape(-1, rank, *(1 for _ in module.shape[2:])), "lora_down": down}
    named = {f"{_name(module)}.{key}.weight": tensor.contiguous() for key, tensor in tensors.items()}
    return {**named, f"{_name(module)}.alpha": torch.tensor(float(alpha or rank))}


def _matrix(tensors, module=LINEAR):
    down = tensors[f"{_name(module)}.lora_down.weight"].flatten(1).double()
    scale = tensors[f"{_name(module)}.alpha"].double() / down.shape[0]
    return scale * tensors[f"{_name(module)}.lora_up.weight"].flatten(1).double() @ down


@pytest.mark.parametrize("module", [LINEAR, CONV], ids=["linear", "conv"])
def test_reducing_is_the_best_there_is(module, tmp_path):
    tensors = _factors(32, alpha=8, module=module, decay=0.9)
    save_file(tensors, tmp_path / "in.safetensors", {"modelspec.title": "kept"})
    report, losses = reducing.reduce_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Limit(rank=6))
    whole = _matrix(tensors, module)
    u, s, v = torch.linalg.svd(whole, full_matrices=False)
    written = load_file(tmp_path / "out.safetensors")
    best = (u[:, :6] * s[:6]) @ v[:6]
    assert (_matrix(written, module) - best).norm() < 1e-5 * whole.norm()
    relative = float(s[6:].norm() / s.norm())
    assert losses.total == pytest.approx(relative, rel=1e-4)
    metadata = convert.read(tmp_path / "out.safetensors").metadata
    assert (metadata["modelspec.title"], metadata["ss_network_dim"]) == ("kept", "6")
    assert float(metadata["scribble_relative_error"]) == pytest.approx(relative, rel=1e-4)
    assert report.rank == 6


@pytest.mark.parametrize(("limit", "rank"), [(Limit(keep=0.99), None), (Limit(ratio=2), None), (Limit(keep=0.99, rank=5), 5)])
def test_the_rank_by_share_and_by_ratio(limit, rank, tmp_path):
    tensors = _factors(32, decay=0.8)
    save_file(tensors, tmp_path / "in.safetensors")
    reducing.reduce_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", limit)
    s = torch.linalg.svdvals(_matrix(tensors))
    kept = (s.square().cumsum(0) / s.square().sum()).sqrt()
    expected = int((kept < 0.99).sum()) + 1 if limit.keep else int((s >= s[0] / 2).sum())
    assert convert.read(tmp_path / "out.safetensors").rank == (rank or expected)


def test_a_lora_within_the_rank_is_copied_byte_for_byte(tmp_path):
    tensors = _factors(4, alpha=1)
    save_file(tensors, tmp_path / "in.safetensors")
    _, losses = reducing.reduce_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Limit(rank=4))
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in load_file(tmp_path / "out.safetensors").items())
    assert losses.total == 0


def test_networks_that_fold_exactly_need_no_rank(tmp_path):
    """A Tucker core folds into the same rank; a LoHa of rank 2 is a LoRA of rank 4; a LoKr of two small halves too."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        f"{_name(CONV)}.lora_up.weight": (320, 4, 1, 1), f"{_name(CONV)}.lora_mid.weight": (4, 4, 3, 3),
        f"{_name(CONV)}.lora_down.weight": (4, 320, 1, 1), f"{_name(LINEAR)}.hada_w1_a": (320, 2),
        f"{_name(LINEAR)}.hada_w1_b": (2, 768), f"{_name(LINEAR)}.hada_w2_a": (320, 2), f"{_name(LINEAR)}.hada_w2_b": (2, 768),
    }  # fmt: skip
    save_file({key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}, tmp_path / "in.safetensors")
    _, losses = reducing.reduce_file(tmp_path / "in.safetensors", tmp_path / "out.safetensors", Limit())
    assert losses.total < 1e-6
    assert losses.ranks == {CONV.name: 4, LINEAR.name: 4}
    before, after = (read_network(tmp_path / name).modules for name in ("in.safetensors", "out.safetensors"))
    for name in before:
        ours, theirs = change(after[name]).matrix(), change(before[name]).matrix()
        assert numpy.linalg.norm(ours - theirs) < 1e-5 * numpy.linalg.norm(theirs)


def test_a_whole_difference_and_a_missing_base_ask_for_what_they_need(tmp_path):
    save_file({f"{_name(LINEAR)}.diff": torch.randn(320, 768)}, tmp_path / "diff.safetensors")
    with pytest.raises(convert.UsageError, match="--rank"):
        reducing.reduce_file(tmp_path / "diff.safetensors", tmp_path / "out.safetensors", Limit())
    dora = {**_factors(4), f"{_name(LINEAR)}.dora_scale": torch.ones(320, 1)}
    save_file(dora, tmp_path / "dora.safetensors")
    with pytest.raises(convert.UsageError, match="--base"):
        reducing.reduce_file(tmp_path / "dora.safetensors", tmp_path / "out.safetensors", Limit(rank=4))
    assert not (tmp_path / "out.safetensors").exists()
    for arguments in ({"rank": 0}, {"keep": 1.5}, {"ratio": 0.5}, {"keep": float("nan")}):
        with pytest.raises(convert.UsageError):
            Limit(**arguments)


def test_a_dora_with_its_base_becomes_a_lora_of_the_same_effect(tmp_path):
    base = {f"model.diffusion_model.{LINEAR.ldm}.weight": torch.randn(320, 768)}
    save_file(base, tmp_path / "base.safetensors")
    dora = {**_factors(4), f"{_name(LINEAR)}.dora_scale": torch.rand(320, 1) + 20}
    save_file(dora, tmp_path / "dora.safetensors")
    _, losses = reducing.reduce_file(
        tmp_path / "dora.safetensors", tmp_path / "lora.safetensors", Limit(rank=320), base=tmp_path / "base.safetensors"
    )
    assert losses.total < 1e-5
    for name in ("dora", "lora"):
        bake(tmp_path / f"{name}.safetensors", tmp_path / "base.safetensors", tmp_path / f"{name}.baked.safetensors")
    one, other = (load_file(tmp_path / f"{name}.baked.safetensors") for name in ("dora", "lora"))
    for key, tensor in one.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-4, atol=1e-4)


def test_merging_is_the_weighted_sum_exactly(tmp_path):
    first, second = _factors(4, seed=1, alpha=2), {**_factors(8, seed=2, alpha=8), **_factors(3, seed=3, module=CONV)}
    save_file(first, tmp_path / "a.safetensors", {"modelspec.trigger_phrase": "one"})
    save_file(second, tmp_path / "b=c.safetensors", {"modelspec.trigger_phrase": "two"})
    arguments = [f"{tmp_path}/a.safetensors=0.8", f"{tmp_path}/b=c.safetensors=-0.5", "--out", f"{tmp_path}/out.safetensors"]
    assert merging.main(arguments) == 0
    written = load_file(tmp_path / "out.safetensors")
    expected = 0.8 * _matrix(first) - 0.5 * _matrix(second)
    assert (_matrix(written) - expected).norm() < 1e-6 * expected.norm()
    assert (_matrix(written, CONV) + 0.5 * _matrix(second, CONV)).norm() < 1e-6 * _matrix(second, CONV).norm()
    lora = convert.read(tmp_path / "out.safetensors")
    assert {name: module.rank for name, module in lora.modules.items()} == {LINEAR.name: 12, CONV.name: 3}
    assert lora.metadata["modelspec.trigger_phrase"] == "one, two"
    twice = [(tmp_path / "a.safetensors", 1), (tmp_path / "a.safetensors", 1)]
    merging.merge(twice, tmp_path / "twice.safetensors", Limit(rank=4))
    twice = _matrix(load_file(tmp_path / "twice.safetensors"))
    assert (twice - 2 * _matrix(first)).norm() < 1e-5 * twice.norm()


def test_merging_biases_and_norms_and_refusing_other_bases(tmp_path):
    norm_layer = modules()["conv_norm_out"]
    for name, value in (("a", 1.0), ("b", 3.0)):
        parts = {f"{_name(norm_layer)}.w_norm": torch.full((320,), value), f"{_name(CONV)}.diff_b": torch.full((320,), -value)}
        save_file({**_factors(2, seed=int(value)), **parts}, tmp_path / f"{name}.safetensors")
    merging.merge([(tmp_path / "a.safetensors", 1), (tmp_path / "b.safetensors", 0.5)], tmp_path / "out.safetensors")
    written = load_file(tmp_path / "out.safetensors")
    assert torch.equal(written[f"{_name(norm_layer)}.w_norm"], torch.full((320,), 2.5))
    assert torch.equal(written[f"{_name(CONV)}.diff_b"], torch.full((320,), -2.5))
    save_file(_factors(2), tmp_path / "c.safetensors", {"ss_base_model_version": "scribble_miniature"})
    with pytest.raises(convert.FileError, match="scribble_miniature"):
        merging.merge([(tmp_path / "a.safetensors", 1), (tmp_path / "c.safetensors", 1)], tmp_path / "no.safetensors")


TO_Q = modules()["text_model.encoder.layers.3.mlp.fc1"]


def _checkpoints(folder, known, noise):
    """A base and the same with a known change of low rank and noise, as LDM files have them."""
    draw = torch.Generator().manual_seed(5)
    base, tuned = {}, {}
    for module in (LINEAR, CONV, TO_Q, modules()["conv_norm_out"]):
        prefix = "model.diffusion_model." if module.scope == "unet" else "cond_stage_model.transformer."
        weight = torch.randn(module.shape, generator=draw) / 10
        base[f"{prefix}{module.ldm}.weight"] = weight
        moved = torch.zeros(module.shape)
        if module in (LINEAR, CONV):
            up = torch.randn(module.shape[0], known, generator=draw)
            moved = (up @ torch.randn(known, moved[0].numel(), generator=draw) / 100).reshape(module.shape)
            moved += noise * torch.randn(module.shape, generator=draw)
        elif len(module.shape) == 1:
            moved += 0.01
        tuned[f"{prefix}{module.ldm}.weight"] = weight + moved
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    return base, tuned


def test_extracting_finds_a_known_change_as_well_as_any_svd(tmp_path):
    base, tuned = _checkpoints(tmp_path, known=8, noise=1e-3)
    arguments = [f"{tmp_path}/tuned.safetensors", "--from", f"{tmp_path}/base.safetensors", "--rank", "8"]
    assert extracting.main([*arguments, "--out", f"{tmp_path}/out.safetensors"]) == 0
    written = load_file(tmp_path / "out.safetensors")
    assert {key.split(".")[0] for key in written} == {_name(LINEAR), _name(CONV)}  # the other did not change
    for module in (LINEAR, CONV):
        key = f"model.diffusion_model.{module.ldm}.weight"
        moved = (tuned[key] - base[key]).flatten(1).double()
        best = torch.linalg.svdvals(moved)[8:].norm()
        assert (_matrix(written, module) - moved).norm() <= (1 + 1e-5) * best


def test_the_commands_report_as_check_does(tmp_path, capsys):
    _checkpoints(tmp_path, known=8, noise=0.0)
    base, tuned, lora, small = (f"{tmp_path}/{name}.safetensors" for name in ("base", "tuned", "lora", "small"))
    bare = {key: tensor for key, tensor in _factors(4).items() if not key.endswith("alpha")}
    save_file(bare, tmp_path / "bare.safetensors")
    checked = {line[:14].strip() for line in table(convert.check(f"{tmp_path}/bare.safetensors")).splitlines()}
    more = {"source", "checkpoint", "error", "worst"}
    for main, arguments, source in [
        (extracting.main, [tuned, "--from", base, "--rank", "8", "--out", lora], "tuned.safetensors - base.safetensors"),
        (reducing.main, [lora, small, "--rank", "2"], "lora.safetensors (LoRA)"),
        (merging.main, [f"{tmp_path}/bare.safetensors", f"{lora}=-0.5", "--out", f"{tmp_path}/sum.safetensors"],
         "1 * bare.safetensors + -0.5 * lora.safetensors"),
        (baking, [lora, "--into", base, "--out", f"{tmp_path}/baked.safetensors", "--scale", "0.5"], f"{lora} at scale 0.5"),
    ]:  # fmt: skip
        assert main(arguments) == 0
        said = capsys.readouterr().out
        assert {line[:14].strip() for line in said.splitlines()} <= checked | more
        assert f"\n{'source':<14}{source}\n" in said
        assert ("no alpha" in said) == (main == merging.main)


def test_extracting_half_precision_does_not_mistake_rounding_for_a_change(tmp_path, capsys):
    base, tuned = _checkpoints(tmp_path, known=4, noise=0.0)
    save_file({key: tensor.half() for key, tensor in tuned.items()}, tmp_path / "half.safetensors")
    arguments = [f"{tmp_path}/half.safetensors", "--from", f"{tmp_path}/base.safetensors", "--rank", "4", "--json"]
    assert extracting.main([*arguments, "--out", f"{tmp_path}/out.safetensors"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["modules"]) == {LINEAR.name, CONV.name}
    assert any("norms and biases" in note for note in report["notes"])
    same = [f"{tmp_path}/base.safetensors", "--from", f"{tmp_path}/base.safetensors", "--rank", "4"]
    assert extracting.main([*same, "--out", f"{tmp_path}/none.safetensors"]) == 1
    assert "nothing to extract" in capsys.readouterr().err
    assert not (tmp_path / "none.safetensors").exists()


def test_extracting_and_baking_are_inverses(tmp_path):
    base, tuned = _checkpoints(tmp_path, known=8, noise=0.0)
    old, new, lora = (tmp_path / f"{name}.safetensors" for name in ("base", "tuned", "lora"))
    extracting.extract(new, old, lora, Limit(rank=8))
    bake(lora, old, tmp_path / "again.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    for key, tensor in tuned.items():
        if "out.0" not in key:
            torch.testing.assert_close(again[key], tensor, rtol=1e-4, atol=1e-5)


def _folder(path):
    for scope, name, module, spelled in (
        ("unet", "diffusion_pytorch_model.safetensors", LINEAR, LINEAR.name),
        ("text_encoder", "model.safetensors", TO_Q, TO_Q.name),
        ("vae", "diffusion_pytorch_model.safetensors", None, "encoder.conv_in"),
    ):
        (path / scope).mkdir(parents=True)
        shape = module.shape if module is not None else (3, 3)
        save_file({f"{spelled}.weight": torch.ones(shape)}, path / scope / name)
        (path / scope / "config.json").write_text("{}")
    (path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"the old weights")
    (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return path


def test_a_diffusers_folder_is_baked_whole_or_one_network_of_it(tmp_path):
    base = _folder(tmp_path / "base")
    te = {key.replace("lora_unet_", "lora_te_"): tensor for key, tensor in _factors(2, module=TO_Q).items()}
    save_file({**_factors(4), **te}, tmp_path / "lora.safetensors")
    report = bake(tmp_path / "lora.safetensors", base, tmp_path / "out", scale=0.5)
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()} - set(report.left_out)
    assert report.left_out == ("unet/diffusion_pytorch_model.bin",)
    unet = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")[f"{LINEAR.name}.weight"]
    torch.testing.assert_close(unet.double(), 1 + 0.5 * _matrix(_factors(4)), rtol=1e-5, atol=1e-5)
    one = base / "unet/diffusion_pytorch_model.safetensors"
    bake(tmp_path / "lora.safetensors", one, tmp_path / "u.safetensors", only="unet")
    bake(tmp_path / "lora.safetensors", base, tmp_path / "one", only="unet")
    for folder, is_the_base in (("out", False), ("one", True)):
        text = load_file(tmp_path / folder / "text_encoder/model.safetensors")[f"{TO_Q.name}.weight"]
        assert torch.equal(text, torch.ones(TO_Q.shape)) == is_the_base
    with pytest.raises(convert.FileError, match="already exists"):
        bake(tmp_path / "lora.safetensors", base, tmp_path / "one", overwrite=True)


@pytest.mark.parametrize("decay", [1.0, 0.95, 0.5])
def test_a_whole_matrix_is_reduced_as_well_as_any_svd_does(decay):
    draw = numpy.random.default_rng(0)
    q1, q2 = (numpy.linalg.qr(draw.standard_normal((n, 450)))[0] for n in (500, 900))
    matrix = ((q1 * decay ** numpy.arange(450)) @ q2.T).astype(numpy.float32)
    s = numpy.linalg.svd(matrix.astype(numpy.float64), compute_uv=False)
    product = reduced(matrix, Limit(rank=16))
    assert norm(matrix - product.matrix()) <= (1 + 1e-5) * numpy.linalg.norm(s[16:]) + 1e-6


def test_a_damaged_network_is_refused_by_name(tmp_path):
    half = {f"{_name(LINEAR)}.hada_w1_a": torch.randn(320, 4), f"{_name(LINEAR)}.hada_w1_b": torch.randn(4, 9)}
    save_file(half, tmp_path / "a")
    with pytest.raises(convert.DoesNotFit, match="LoHa do not fit"):
        reducing.reduce_file(tmp_path / "a", tmp_path / "out.safetensors", Limit(rank=4))
    nan = _factors(8)
    nan[f"{_name(LINEAR)}.lora_up.weight"][0, 0] = float("nan")
    save_file(nan, tmp_path / "b")
    with pytest.raises(convert.NotFinite):
        reducing.reduce_file(tmp_path / "b", tmp_path / "out.safetensors", Limit(rank=4))
