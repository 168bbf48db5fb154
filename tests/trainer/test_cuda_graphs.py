"""The UNet's pass as CUDA graphs: what a CPU can test of it, and the rest if there is a GPU."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from trainer.kernels import Fused, cuda_graphs
from trainer.kernels.cuda_graphs import Graphed
from trainer.lora import adapter
from trainer.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def trained_unet(dtype: torch.dtype, device: str = "cpu") -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=16, block_out_channels=(16,) * 4, norm_num_groups=2, cross_attention_dim=12,
                                attention_head_dim=2)
    unet.eval().requires_grad_(False).to(device, dtype)
    for _, factor in adapter.attach(unet, Recipe(rank=2)):
        factor.data += 0.1 * torch.randn_like(factor)
    return unet.to(device)


def inputs(dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    sample, embedding = torch.randn(2, 4, 16, 16, generator=g), torch.randn(2, 5, 12, generator=g)
    return sample.to(device, dtype), torch.tensor([3, 700], device=device), embedding.to(device, dtype)


def test_a_pass_reads_nothing_back_from_the_device() -> None:
    """Runs on meta tensors, in half precision as on a GPU: reading a value would fail, as in a graph's capture."""
    unet = trained_unet(torch.bfloat16)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    with Fused(unet), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        sample, timestep, embedding = (mode.from_tensor(tensor) for tensor in inputs(torch.bfloat16))
        predicted = unet(sample, timestep, embedding, return_dict=False)[0]
        gradients = torch.autograd.grad(predicted.float().square().mean(), parameters)
        with pytest.raises(DataDependentOutputException):
            predicted.sum().item()
    assert [gradient.shape for gradient in gradients] == [parameter.shape for parameter in parameters]


def test_where_no_graph_can_be_captured_the_pass_is_plain_and_one_line_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine can capture graphs")
    unet, said = trained_unet(torch.float32), []
    graphed = Graphed(unet, unet, "on", said.append)
    given = inputs(torch.float32)
    expected = unet(*given, return_dict=False)[0]
    for _ in range(2):
        assert torch.equal(graphed(*given)[0], expected)
    assert len(said) == 1 and said[0].startswith("no CUDA graph: ") and said[0].endswith("training continues without it")


def test_a_graph_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(torch.nn.Module):
        def __init__(self, plain, examples):
            super().__init__()
            self.plain = plain

        def forward(self, *given):
            return self.plain(*given) * 1.1

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", Wrong)
    unet, said = trained_unet(torch.float32), []
    graphed = Graphed(unet, unet, "on", said.append)
    given = inputs(torch.float32)
    assert torch.equal(graphed(*given)[0], unet(*given, return_dict=False)[0])
    assert len(said) == 1 and "differs from the plain pass by" in said[0]


def test_memory_that_runs_out_in_a_capture_halves_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", full)
    unet = trained_unet(torch.float32)
    with pytest.raises(torch.OutOfMemoryError):
        Graphed(unet, unet, "on", print)(*inputs(torch.float32))


def test_at_most_eight_shapes_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda plain, examples: captured.append(examples) or plain)
    unet = trained_unet(torch.float32)
    graphed = Graphed(unet, unet, "on", print)
    sample, timestep, embedding = inputs(torch.float32)
    for tokens in range(1, 11):
        graphed(sample, timestep, embedding[:, :1].expand(-1, tokens, -1))
    assert len(captured) == cuda_graphs.MOST_GRAPHS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_graphs_train_the_same_as_the_plain_pass() -> None:
    unet, said = trained_unet(torch.bfloat16, "cuda"), []
    graphed, parameters = Graphed(unet, unet, "on", said.append), [p for p in unet.parameters() if p.requires_grad]
    gradients = []
    with Fused(unet):
        for forward in (unet, graphed, graphed):
            predicted = forward(*inputs(torch.bfloat16, "cuda"), return_dict=False)[0]
            found = torch.autograd.grad(predicted.float().square().mean(), parameters)
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))
    assert not said
    for mine in gradients[1:]:
        assert (mine - gradients[0]).norm() < 1e-2 * gradients[0].norm()
