"""Models that cannot be trained on are refused in one line, before anything is encoded or loaded."""

import comfy.model_patcher
import comfy.ops
import comfy.sd
import pytest
import torch

from eraseanything_core.comfy_bridge.host import ComfyHost
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.evaluation.attack_runs import run_inversion, run_relearning
from eraseanything_core.evaluation.weight_attacks import ConceptExamples, InversionConfig, RelearnConfig
from eraseanything_core.training.recipe import train_eraser
from tests.comfy.tiny import new_model


def refused(patcher, clip, config, words):
    with pytest.raises(ValueError, match=words) as caught:
        train_eraser(ComfyHost(patcher, clip), config)
    assert "\n" not in str(caught.value)


def test_not_flux(clip, config):
    other = torch.nn.Linear(1, 1)
    refused(
        comfy.model_patcher.ModelPatcher(other, "cpu", "cpu"),
        clip,
        config,
        "the MODEL is a Linear: its class .*Linear is not known",
    )


@pytest.mark.parametrize("attack, config", [(run_inversion, InversionConfig()), (run_relearning, RelearnConfig())])
def test_attacks_refuse_it_too(clip, attack, config):
    other = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), "cpu", "cpu")
    examples = ConceptExamples(torch.zeros(1, 16, 12, 12), "a star", "star")
    with pytest.raises(ValueError, match="the MODEL is a Linear: its class .*Linear is not known"):
        attack(ComfyHost(other, clip), {}, examples, config)


def test_sound(clip, config):
    refused(new_model("StableAudio"), clip, config, "the MODEL is a StableAudio1: it makes sound, and what is trained")


def test_compiled(patcher, clip, config):
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    compiled = patcher.clone()
    set_torch_compile_wrapper(compiled, backend="eager")
    refused(compiled, clip, config, "compiled")


@pytest.mark.parametrize("part", ("diffusion_model", "diffusion_model.double_blocks.0"))
def test_compiled_in_place(patcher, clip, config, part):
    """As nodes do it that put what torch.compile makes where a module was."""
    compiled = patcher.clone()
    compiled.add_object_patch(part, torch.compile(patcher.get_model_object(part), backend="eager"))
    refused(compiled, clip, config, "compiled")


def test_another_forward_is_no_compilation(patcher, clip, config):
    """As nodes do it that skip blocks or cache steps."""
    patched = patcher.clone()
    patched.add_object_patch("diffusion_model.forward_orig", patcher.model.diffusion_model.forward_orig)
    refused(patched, clip, config, "already patched")


def test_patched_by_a_lora(patcher, clip, config):
    zeros = {"lora_A": torch.zeros(4, 256), "lora_B": torch.zeros(256, 4)}
    key = "transformer.transformer_blocks.0.attn.add_k_proj"
    patched, _ = comfy.sd.load_lora_for_models(
        patcher, None, {f"{key}.{name}.weight": t for name, t in zeros.items()}, 1.0, 0.0
    )
    refused(patched, clip, config, "already patched")


def test_patched_by_a_node(patcher, clip, config):
    patched = patcher.clone()
    patched.set_model_attn1_patch(lambda q, k, v, **_: {})
    refused(patched, clip, config, "already patched")


class Packed(comfy.ops.manual_cast):
    """A loader's own 4-bit layers, which only their forward can unpack."""

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            self.weight = torch.nn.Parameter(torch.zeros(self.weight.numel() // 2, 1).byte(), requires_grad=False)


def test_weights_that_nobody_else_can_unpack(make_flux, clip, config):
    with torch.inference_mode():
        state = dict(make_flux().state_dict())
        patcher = comfy.sd.load_diffusion_model_state_dict(state, model_options={"custom_operations": Packed})
    refused(patcher, clip, config, "Packed.Linear does not say how it unpacks its weights: load the MODEL as")


def test_a_flux_that_paints_from_an_image(make_flux, clip, config):
    """Fill has 384 channels, Canny and Depth 128: twice the noise's, and a mask's."""
    with torch.inference_mode():
        patcher = comfy.sd.load_diffusion_model_state_dict(dict(make_flux(in_channels=32).state_dict()))
    refused(patcher, clip, config, "paints from an image .Fill, Canny, Depth.: load a text-to-image one")


def test_streamed_weights_that_cannot_be_had(patcher, clip, config, monkeypatch):
    """Of a custom loader under DynamicVRAM; core's loaders tell ComfyUI how to load the file again."""
    monkeypatch.setattr(type(patcher), "is_dynamic", lambda self: True)
    refused(patcher, clip, config, "use Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram")


class OtherClip:
    """A text encoder that gives context and pooled of some widths, or has no T5 to begin with."""

    def __init__(self, tokenizer, names=("t5xxl",), context=128, pooled=64):
        self.tokenizer, self.names, self.widths = tokenizer, names, (context, pooled)

    def tokenize(self, text):
        return dict.fromkeys(self.names, self.tokenizer.t5xxl.tokenize_with_weights(text))

    def encode_from_tokens(self, tokens, return_pooled):
        context, pooled = self.widths
        return torch.zeros(1, 32, context), torch.zeros(1, pooled) if pooled else None


@pytest.mark.parametrize(
    "made, words",
    (
        ({"names": ("l", "g")}, "the CLIP has no T5-XXL, only l, g: connect Flux.1's own"),
        ({"context": 64}, "encodes a prompt in 64 and 64 features, the MODEL takes 128 and 64: connect Flux.1's own"),
        ({"pooled": 2048}, "encodes a prompt in 128 and 2048 features, the MODEL takes 128 and 64"),
        ({"pooled": 0}, "encodes a prompt in 128 and 0 features"),
    ),
    ids=str,
)
def test_another_models_clip(patcher, clip, config, made, words):
    refused(patcher, OtherClip(clip.tokenizer, **made), config, words)


def test_another_sampling_shift_is_no_patch(patcher):
    """ModelSamplingFlux replaces only the schedule, which the trainer follows."""
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    (shifted,) = ModelSamplingFlux().patch(patcher, 1.15, 0.5, 512, 512)
    with training_session(shifted) as model:
        assert model.mu == pytest.approx(0.63, abs=1e-3)
    with training_session(patcher) as model:
        assert model.mu == 1.15
