"""What attention keeps where no fused kernel takes it, by a real forward and backward."""

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from comfy.ldm.flux.model import FluxParams
from torch.nn.attention import SDPBackend, sdpa_kernel

from eraseanything_core.comfy_bridge import attention_memory
from eraseanything_core.comfy_bridge.attention_memory import FUSED, attention_cost
from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.memory import activation_bytes
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.trajectory_cache import TrajectoryCache
from lab.bench.memory import Live
from tests.comfy.training.conftest import SHAPE

CPU = torch.device("cpu")
WIDTH = 128  # of a head of the small model, as of FLUX.1's
SIDE = 64  # latent cells, so 1,024 image tokens
TEXT = 64
PARAMS = {name: value for name, value in SHAPE.items() if name != "image_model"}


@pytest.fixture(autouse=True)
def measured_anew():
    attention_memory.attention_cost.cache_clear()
    yield
    attention_memory.attention_cost.cache_clear()


def unfused():
    return sdpa_kernel(SDPBackend.MATH)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_a_fused_attention_keeps_no_matrix_and_another_one_does(dtype):
    assert attention_cost(CPU, dtype, WIDTH) == FUSED
    attention_memory.attention_cost.cache_clear()
    with unfused():
        cost = attention_cost(CPU, dtype, WIDTH)
    # The weights of the softmax. ComfyUI lets PyTorch compute them in the type of the queries.
    assert cost.pair == dtype.itemsize and cost.token < dtype.itemsize * WIDTH


@pytest.mark.parametrize("kernel, backend", (("flash", nullcontext), ("math", unfused)))
def test_the_estimate_takes_the_factor_of_its_attention(monkeypatch, kernel, backend):
    """As a report of a card would fill the table; 1 is what it holds until there is one."""
    assert set(attention_memory.FACTORS.values()) == {1.0}
    told = []
    for factor in (1.0, 1.25):
        monkeypatch.setitem(attention_memory.FACTORS, kernel, factor)
        attention_memory.attention_cost.cache_clear()
        with backend():
            cost = attention_cost(CPU, torch.bfloat16, WIDTH)
        told.append(activation_bytes(FluxParams(**PARAMS), 1280, 1, 2, True, 1000, 1000, cost))
    assert told[1] == pytest.approx(1.25 * told[0], rel=1e-6)


@pytest.mark.parametrize("name", ("Flash", "Cudnn", "Efficient"))
def test_the_kernel_of_an_attention_is_read_from_its_graph(name):
    """Autograd's names of those that a CPU has not."""

    def node(called, *before):
        return SimpleNamespace(name=lambda: called, next_functions=[(each, 0) for each in before])

    attention = node(f"ScaledDotProduct{name}AttentionBackward0", node("AccumulateGrad"))
    output = SimpleNamespace(grad_fn=node("ViewBackward0", None, attention))
    assert attention_memory.kernel_of(output) == name.lower() and name.lower() in attention_memory.FACTORS
    assert attention_memory.kernel_of(torch.ones(1, requires_grad=True) * 2) == ""


def peak(patcher, recompute):
    """Bytes at the peak of one pass that reads a word in every double block, without the weights."""
    host = ComfyHost(patcher, None)
    flux = patcher.model.diffusion_model
    x_t = torch.zeros(1, 16, SIDE, SIDE)
    context = torch.zeros(1, TEXT, flux.params.context_in_dim)
    pooled = torch.zeros(1, flux.params.vec_in_dim)
    with host.session(torch.float32, recompute) as model:
        model.attach("all_qkv", 1, torch.Generator().manual_seed(0))
        capture = model.capture(torch.ones(1, TEXT, 1))
        with Live() as live:
            v = model.velocity(x_t, torch.tensor([0.5]), model.cond(context, pooled, 1.0), True, capture)
            (v.sum() + sum(columns.sum() for columns in capture.maps.values())).backward()
    return live.peak


@pytest.mark.parametrize("recompute", (False, True), ids=("kept", "recomputed"))
def test_the_estimate_counts_the_matrices_that_are_kept(patcher, recompute):
    params = FluxParams(**PARAMS)
    tokens = (SIDE // 2) ** 2 + TEXT
    told = {}
    found = {}
    for name, backend in (("fused", nullcontext), ("unfused", unfused)):
        with backend():
            found[name] = peak(patcher, recompute)
            cost = attention_cost(CPU, torch.float32, WIDTH)
        attention_memory.attention_cost.cache_clear()
        told[name] = activation_bytes(params, tokens, 1, 4, recompute, 0, 0, cost)
    more_told = told["unfused"] - told["fused"]
    more_found = found["unfused"] - found["fused"]
    assert more_found > 0.1 * found["fused"], "the matrices do not matter here"
    # The largest moment of a recomputed block of this small model is not in its attention.
    assert 1 <= more_told / more_found < (2.5 if recompute else 1.5)


def test_a_forward_of_the_teacher_has_no_more_sequences_than_are_reserved(patcher, clip, config, monkeypatch):
    """The reserve is for four times the batch; eight words to compare with are read in several forwards."""
    words = tuple(f"word {chr(97 + i)}" for i in range(8))
    config = dataclasses.replace(config, irrelevant=words, k_irrelevant=8, batch_size=1)
    host = ComfyHost(patcher, clip)
    sizes = []
    with host.session() as model:
        plan = prepare(config, host.text_encoder())
        run = model._run
        monkeypatch.setattr(model, "_run", lambda x_t, *rest, **more: sizes.append(len(x_t)) or run(x_t, *rest, **more))
        epoch = TrajectoryCache(model, plan).epoch(0)
    assert epoch.concept.word_features.shape[2] == 1 + 8
    assert max(sizes) == 4
