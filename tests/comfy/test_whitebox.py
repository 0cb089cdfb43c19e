"""The attacks that search, on TinyFlux with a LoRA that spoils it, and their nodes over HTTP."""

import importlib
from types import SimpleNamespace

import comfy.model_management
import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.frozen_view import frozen_view
from eraseanything_core.comfy_bridge.gradients import exact_gradients
from eraseanything_core.comfy_bridge.model import FluxModel
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.evaluation import weight_attacks
from eraseanything_core.lora.adapter import Lora
from eraseanything_core.lora.keys import target_slices
from eraseanything_core.training.losses import flow_matching_loss
from lab.boards import gallery
from lab.measurements import attack_benchmark
from lab.tinyflux import pipeline as tiny
from lab.tinyflux.generator import FLUX
from lab.tinyflux.measure import merged
from scripts.erase_settings import UNWATCHED, settings_nodes
from scripts.graph import inputs_of

PROMPT = "a photo of a red heart"


@pytest.fixture(scope="module")
def patcher():
    return comfy.sd.load_diffusion_model(str(tiny.WEIGHTS / "tinyflux.safetensors"))


@pytest.fixture(scope="module")
def pipeline():
    return tiny.Pipeline(tiny.flux(dtype=torch.float32))


@pytest.fixture(scope="module")
def hearts(pipeline):
    """Ten latents of hearts, in the model's space."""
    return pipeline.latents([PROMPT] * 10, list(range(10)), 3.5)


@pytest.fixture(scope="module")
def examples(hearts):
    return weight_attacks.ConceptExamples(hearts, PROMPT, "heart")


@pytest.fixture(scope="module")
def spoiler():
    """A LoRA with two ranks that changes the text stream a good deal."""
    tensors, g = {}, torch.Generator().manual_seed(0)
    for targets, rank in (("add_k+add_v", 4), ("single_v", 2)):
        parts = target_slices(
            targets, FLUX["hidden_size"], FLUX["depth"], FLUX["depth_single_blocks"], FLUX["mlp_ratio"]
        )
        lora = Lora(parts, rank, g)
        for up in lora.up:
            up.data.normal_(0, 0.3, generator=g)
        tensors |= lora.tensors(torch.float32)
    return tensors


def points(hearts, pipeline, model):
    """The same noised hearts for every model, with their condition."""
    x_0, noise, t, x_t = weight_attacks.noised(hearts, 16, torch.Generator().manual_seed(7))
    context, pooled = (x.expand(16, *x.shape[1:]) for x in pipeline.encode([PROMPT]))
    return x_0, noise, x_t, t, model.cond(context, pooled, 3.5)


def test_a_lora_that_is_with_frozen_lora_equals_the_merged_one(patcher, pipeline, hearts, spoiler):
    with training_session(patcher, torch.float32) as model:
        _, _, x_t, t, cond = points(hearts, pipeline, model)
        plain = model.velocity(x_t, t, cond, adapters=False)
        model.attach_frozen_lora(spoiler, 0.5)
        worn = [model.velocity(x_t, t, cond, adapters) for adapters in (True, False)]
    other = FluxModel(frozen_view(merged(pipeline.module, spoiler, 0.5), torch.float32), "cpu", torch.float32)
    with exact_gradients(other.module):
        theirs = other.velocity(x_t, t, cond, adapters=False)
    assert (worn[0] - theirs).norm() / theirs.norm() < 1e-5 and torch.equal(*worn)
    assert (worn[0] - plain).norm() / plain.norm() > 0.05


def test_a_lora_of_another_model_is_not_with_frozen_lora(patcher):
    key = "transformer.transformer_blocks.99.attn.to_q"
    factors = {f"{key}.lora_A.weight": torch.zeros(1, 1), f"{key}.lora_B.weight": torch.zeros(1, 1)}
    with training_session(patcher, torch.float32) as model, pytest.raises(ValueError, match="not of this model"):
        model.attach_frozen_lora(factors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inversion_lowers_the_loss_and_changes_only_the_concepts_states(
    patcher, pipeline, hearts, examples, spoiler, dtype
):
    config = weight_attacks.InversionConfig(steps=30, lr=0.1, guidance=3.5)
    text = tiny.TrainerText(pipeline)
    with training_session(patcher, dtype) as model:
        model.attach_frozen_lora(spoiler)
        before = {name: p.clone() for name, p in model.module.state_dict().items()}
        context, _, history = weight_attacks.invert(model, text, examples, config)
        assert all(torch.equal(p, before[name]) for name, p in model.module.state_dict().items())
        x_0, noise, x_t, t, cond = points(hearts, pipeline, model)
        old, new = (
            float(flow_matching_loss(model.velocity(x_t, t, c, adapters=False), x_0, noise))
            for c in (cond, cond._replace(context=context.expand_as(cond.context)))
        )
    assert len(history) == 30 and new < 0.9 * old
    moved = (context - text.encode(PROMPT)[0]).abs().amax(-1)[0].nonzero()[:, 0].tolist()
    assert moved == weight_attacks.concept_positions(text, PROMPT, "heart")


@pytest.mark.parametrize("extra", [{}, {"attn_weight": 1.0, "retain_weight": 1.0}])
def test_relearning_brings_the_pictures_back(patcher, pipeline, hearts, examples, spoiler, extra):
    config = weight_attacks.RelearnConfig(steps=25, lr=2e-3, guidance=3.5, **extra)
    with training_session(patcher, torch.float32) as model:
        model.attach_frozen_lora(spoiler)
        found, history = weight_attacks.relearn(model, tiny.TrainerText(pipeline), examples, config)
        x_0, noise, x_t, t, cond = points(hearts, pipeline, model)
        old, new = (
            float(flow_matching_loss(model.velocity(x_t, t, cond, adapters).detach(), x_0, noise))
            for adapters in (False, True)
        )
        column = {}
        select = torch.zeros(16, cond.context.shape[1], 1)
        select[:, weight_attacks.concept_positions(tiny.TrainerText(pipeline), PROMPT, "heart")] = 1
        for adapters in (False, True):
            maps = model.columns(x_t, t, cond, adapters, model.capture(select))
            column[adapters] = float(torch.stack([m.detach() for m in maps.values()]).mean())
    assert len(history) == 25 and new < 0.8 * old
    assert not extra or column[True] > 1.5 * column[False]
    assert set(found) == set(Lora(target_slices("all_qkv", 256, 2, 4, FLUX["mlp_ratio"]), 8).tensors())


def test_two_runs_of_an_attack_are_equal(patcher, pipeline, examples):
    config = weight_attacks.RelearnConfig(steps=2, batch_size=2)
    runs = []
    for _ in range(2):
        with training_session(patcher, torch.float32) as model:
            runs.append(weight_attacks.relearn(model, tiny.TrainerText(pipeline), examples, config)[0])
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_half_back_is_halfway_between():
    assert weight_attacks.recovered([0.1, 0.3, 0.5, 0.9], base=0.9, erased=0.1) == 2
    assert weight_attacks.recovered([0.1, 0.2], base=0.9, erased=0.1) is None


def defaults(server, node: str) -> dict:
    return {entry.name: entry.default() for entry in inputs_of(node, server.object_info()) if entry.is_widget}


def test_reflux_is_a_mode_that_sets_both_weights(pack, monkeypatch):
    """And the boards and `dev.py attack_benchmark` use the same settings."""
    node, taken = pack["EraseAnything_RelearnAttack"], []
    here = importlib.import_module(node.__module__)
    monkeypatch.setattr(here, "run_relearning", lambda *arguments: taken.append(arguments[3]) or ({}, [0.0]))
    settings = {"steps": 3, "attn_weight": 0.5, "retain_weight": 0.0}
    for mode in ({}, {"mode": "relearn"}, {"mode": "ReFlux"}):
        node.execute(None, None, None, {"samples": None}, PROMPT, "heart", **settings, **mode)
    weights = [(config.steps, config.attn_weight, config.retain_weight) for config in taken]
    assert weights == [(3, 0.5, 0), (3, 0.5, 0), (3, 1, 1)]
    board, benchmark = gallery.ATTACKERS["awaking"], attack_benchmark.WAYS["relearned, attention awoken"]
    assert (board.attn_weight, board.retain_weight) == (1, 1)
    assert benchmark == {"attn_weight": 1, "retain_weight": 1}


def test_the_nodes_run_in_a_graph(server):
    """A trained eraser of two steps, attacked in three ways, and the pictures of the attacked model."""
    trainer, inversion, relearn, genetic = (
        f"EraseAnything_{name}" for name in ("EraseTrainer", "InversionAttack", "RelearnAttack", "GeneticAttack")
    )
    small = {"width": 96, "height": 96, "steps": 2, "sampling_steps": 2, "cached_trajectories": 1}
    settings, link = settings_nodes("small", small | UNWATCHED)
    links = {"model": ["1", 0], "clip": ["2", 0], "vae": ["11", 0], "settings": link}
    target = {"model": ["1", 0], "clip": ["2", 0], "lora": ["3", 1], "latent": ["4", 0]}
    words = {"prompt": PROMPT, "concept": "heart", "steps": 2}
    graph = {
        "1": ("UNETLoader", {"unet_name": "tinyflux.safetensors", "weight_dtype": "default"}),
        "2": ("EraseAnything_TinyFlux", {"text_encoder": "tinyflux_text.safetensors"}),
        "3": (trainer, defaults(server, trainer) | links | {"concept": "heart", "output_name": "two"}),
        "4": ("EmptySD3LatentImage", {"width": 96, "height": 96, "batch_size": 2}),
        "5": (inversion, defaults(server, inversion) | target | words),
        "6": (relearn, defaults(server, relearn) | target | words),
        "7": ("LoraModelLoader", {"model": ["1", 0], "lora": ["6", 0], "strength_model": 1.0, "bypass": False}),
        "8": (
            "KSampler",
            {
                "model": ["7", 0], "seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple",
                "positive": ["5", 0], "negative": ["5", 0], "latent_image": ["4", 0], "denoise": 1.0,
            },
        ),
        "9": ("SaveLatent", {"samples": ["8", 0], "filename_prefix": "attacked"}),
        "10": (
            genetic,
            defaults(server, genetic)
            | {"clip": ["2", 0], "concept": "heart", "population": 8, "generations": 3, "words": 3},
        ),
        "11": ("VAELoader", {"vae_name": "tinyflux_vae.safetensors"}),
    }  # fmt: skip
    nodes = {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in graph.items()}
    entry = server.run(settings | nodes, timeout=300)
    assert entry["status"]["status_str"] == "success"
    prompt = entry["outputs"]["10"]["text"][0].splitlines()[0]
    assert len(prompt.split()) == 3 and "heart" not in prompt


def test_a_cancel_ends_a_genetic_search(pack, monkeypatch):
    """ComfyUI itself does not look for one while prompts are encoded."""
    node = pack["EraseAnything_GeneticAttack"]
    encoded = []
    cancel_after = []  # how many prompts are encoded before the user cancels

    class Text:
        def encode(self, prompt):
            encoded.append(prompt)
            if len(encoded) in cancel_after:
                comfy.model_management.interrupt_current_processing(True)
            return SimpleNamespace(context=torch.full((1, 2, 3), float(len(prompt))))

    class Host:
        def __init__(self, model, clip):
            assert model is None

        def text_encoder(self, keep):
            assert not keep
            return Text()

        def vocabulary(self):
            return [f"▁{word}" for word in ("river", "stone", "cloud", "heart")]

    here = importlib.import_module(node.__module__)
    monkeypatch.setattr(here, "ComfyHost", Host)
    settings = {"population": 8, "generations": 3, "words": 2}
    node.execute(None, "heart", "a {}", "", **settings)
    whole = len(encoded)
    assert not any("heart" in prompt for prompt in encoded[2:])  # the first two are the target's
    encoded.clear()
    cancel_after.append(5)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            node.execute(None, "heart", "a {}", "", **settings)
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert len(encoded) == 5 < whole
