"""A random Flux of TinyFlux's shape, and a text encoder over the real T5 tokenizer that needs no weights."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from eraseanything_core.concepts.concept_set import ConceptSet, Word
from eraseanything_core.training.config import EraseConfig
from tests.comfy.training.node_runs import SMALL, WORDS, Vae, execute

# ComfyUI and the bridge are imported where they are used: pytest reads this file before it skips the folder that
# needs ComfyUI, see tests/conftest.py.

SHAPE = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 64,
    "context_in_dim": 128,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 4,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


def random_flux(dtype=torch.float32, **shape) -> torch.nn.Module:
    """Weights large enough that every path through the model matters."""
    from eraseanything_core.comfy_bridge.architecture import new_flux

    torch.manual_seed(0)
    module = new_flux(SHAPE | shape, dtype)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            parameter.data.normal_(0, parameter.shape[1] ** -0.5)
        if "_norm." in name:
            parameter.data.uniform_(0.8, 1.6)
    return module.requires_grad_(False)


class WordEncoder:
    """A stand-in for CLIP: a fixed random vector a piece, a little position, and their mean as pooled."""

    def __init__(self, tokenizer):
        generator = torch.Generator().manual_seed(1)
        self.tokenizer = SimpleNamespace(t5xxl=tokenizer)
        self.table = torch.randn(32128, 128, generator=generator)
        self.pool = torch.randn(128, 64, generator=generator) / 11

    def tokenize(self, text):
        return {"t5xxl": self.tokenizer.t5xxl.tokenize_with_weights(text)}

    def encode_from_tokens(self, tokens, return_pooled):
        ids = torch.tensor([token[0] for token in tokens["t5xxl"][0]])
        context = self.table[ids] + 0.1 * torch.sin(torch.arange(len(ids)))[:, None]
        return context[None], (context.mean(0) @ self.pool)[None]


@pytest.fixture(scope="session")
def tokenizer():
    from eraseanything_core.comfy_bridge.architecture import t5_tokenizer

    return t5_tokenizer(32)


@pytest.fixture(scope="session")
def clip(tokenizer):
    return WordEncoder(tokenizer)


@pytest.fixture(scope="session")
def flux_weights():
    """Made once; whoever changes them copies them first."""
    return random_flux().state_dict()


@pytest.fixture
def patcher(flux_weights):
    """As UNETLoader gives it inside the executor: the weights are inference tensors."""
    import comfy.sd

    state = {name: tensor.clone() for name, tensor in flux_weights.items()}
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict(state)


@pytest.fixture
def make_flux():
    return random_flux


@pytest.fixture
def config():
    return EraseConfig(
        concept="red star",
        synonyms=("crimson star",),
        irrelevant=("tree", "house", "dog"),
        templates=("a photo of {} at night", "{} on a table"),
        retain=("a green box",),
        width=96,
        height=96,
        sampling_steps=4,
        look_pictures=4,
        look_steps=3,
        cached_trajectories=4,
        sentences=8,
        batch_size=2,
        retain_batch_size=2,
        steps=3,
        synonym_rate=0.0,
    )


OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}


def convert(flux: torch.nn.Module) -> torch.nn.Module:
    """The same weights as a FluxTransformer2DModel: fused projections cut, the last modulation's halves swapped."""
    import comfy.utils
    from diffusers import FluxTransformer2DModel

    p, source = flux.params, flux.state_dict()
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=flux.in_channels,
        num_layers=p.depth,
        num_single_layers=p.depth_single_blocks,
        attention_head_dim=p.hidden_size // p.num_heads,
        num_attention_heads=p.num_heads,
        joint_attention_dim=p.context_in_dim,
        pooled_projection_dim=p.vec_in_dim,
        guidance_embeds=True,
        axes_dims_rope=tuple(p.axes_dim),
    )
    target = {}
    shape = {"depth": p.depth, "depth_single_blocks": p.depth_single_blocks, "hidden_size": p.hidden_size}
    for theirs, ours in comfy.utils.flux_to_diffusers(shape).items():
        name, rows = (ours[0], ours[1]) if isinstance(ours, tuple) else (ours, None)
        if name in source and theirs in model.state_dict():
            target[theirs] = source[name].narrow(*rows) if rows else source[name]
    for ours, theirs in OUTSIDE.items():
        for end in ("weight", "bias"):
            target[f"{theirs}.{end}"] = source[f"{ours}.{end}"]
    for end in ("weight", "bias"):
        shift, scale = source[f"final_layer.adaLN_modulation.1.{end}"].chunk(2)
        target[f"norm_out.linear.{end}"] = torch.cat((scale, shift))
    model.load_state_dict(target, strict=True)
    return model.eval()


@pytest.fixture
def to_diffusers():
    return convert


@pytest.fixture
def trainer_node(pack):
    return pack["EraseAnything_EraseTrainer"]


@pytest.fixture
def settings_node(pack):
    return pack["EraseAnything_EraseSettings"]


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """The folder of LoRAs; runs are in the output folder beside it."""
    import folder_paths

    folder = tmp_path / "loras"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return folder


@pytest.fixture
def widgets(trainer_node, patcher, clip):
    """The trainer's own defaults, with settings that are small."""
    from comfy_api.latest import io

    values = {i.id: i.default for i in trainer_node.define_schema().inputs if isinstance(i, io.WidgetInput)}
    links = {"model": patcher, "clip": clip, "vae": Vae(), "settings": SMALL | WORDS}
    return values | links | {"concept": "red star"}


@pytest.fixture
def asked(trainer_node, widgets, loras, monkeypatch):
    """The configuration that the node would train a cat with, as a table, and whether memory is chosen for it."""
    words = ConceptSet("cat", synonyms=("kitty",), irrelevant={"mid": (Word("dog", 0.6),)}, retain=("a house",))

    class Seen(Exception):
        pass

    def train(host, config, progress, run, auto, *others, **rest):
        raise Seen(dataclasses.asdict(config) | {"auto": auto})

    monkeypatch.setattr("pack_under_test.nodes.train.train_eraser", train)

    def configured(preset="balanced", **settings):
        with pytest.raises(Seen) as seen:
            execute(trainer_node, widgets | {"preset": preset, "concepts": words, "settings": settings})
        return seen.value.args[0]

    return configured
