"""LoRA files of other families: diffusers' names, what other tools write, and what is refused."""

import pytest
import torch
from safetensors import safe_open

from eraseanything_core.comfy_bridge.families.slices import role_slices
from eraseanything_core.comfy_bridge.lora_files import eraser_for
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.lora.factors import by_module
from eraseanything_core.lora.key_styles import left_out_note
from eraseanything_core.lora.keys import UNET
from lab.bench.true_families import SIZES, true_model
from tests.comfy.families.test_family_training import targets_of
from tests.comfy.tiny import new_model
from tests.comfy.training.node_runs import execute

SOME = ("Lumina2", "QwenImage", "SD3", "SDXL", "WAN21_T2V", "Chroma")
UNET_BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "block_out_channels": (64, 64), "layers_per_block": 1, "transformer_layers_per_block": 2,
}  # fmt: skip
HIDREAM = {
    "num_layers": 2, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 2, "patch_size": 2,
    "caption_channels": [16, 16], "text_emb_dim": 16, "num_routed_experts": 2, "num_activated_experts": 1,
    "axes_dims_rope": (32, 16, 16), "llama_layers": (0, 1), "max_resolution": (32, 32), "in_channels": 16,
}  # fmt: skip
DIFFUSERS = {  # by family: diffusers' class, and what its default lacks
    "AuraFlow": ("AuraFlowTransformer2DModel", {}),
    "Chroma": ("ChromaTransformer2DModel", {}),
    "Flux2": ("Flux2Transformer2DModel", {"num_layers": 2, "num_single_layers": 2}),
    "FluxSchnell": ("OvisImageTransformer2DModel", {}),
    "HiDream": ("HiDreamImageTransformer2DModel", HIDREAM),
    "Krea2": ("Krea2Transformer2DModel", {}),
    "LongCatImage": ("LongCatImageTransformer2DModel", {}),
    "Z-Image": ("ZImageTransformer2DModel", {}),
    "PixArtSigma": ("PixArtTransformer2DModel", {"caption_channels": 4096}),
    "QwenImage": ("QwenImageTransformer2DModel", {}),
    "SD15": ("UNet2DConditionModel", UNET_BLOCKS),
    "SD3": ("SD3Transformer2DModel", {}),
    "SDXL": ("UNet2DConditionModel", UNET_BLOCKS),
}
# The stock loader knows no name of diffusers' for them, so a file has ComfyUI's own.
COMFYUI_ALONE = ("Anima", "HunyuanImage21", "Ideogram4")


def names_of(name):
    """What stands in front of the factors in a file of the presets' targets."""
    # The small Lumina2 has fewer heads of k and v than diffusers' Z-Image; at true size they are as many.
    base = true_model(name, {"n_layers": 2}).road.base if name in SIZES else new_model(name).model
    return {each.file_key for each in role_slices(base, base.diffusion_model, targets_of(name))}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_names_are_those_of_diffusers(name):
    diffusers = pytest.importorskip("diffusers")
    kind, config = DIFFUSERS[name]
    with torch.device("meta"):
        model = getattr(diffusers, kind)(**config)
    theirs = {path for path, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    flat = {UNET + path.replace(".", "_") for path in theirs}
    names = names_of(name)
    assert names and {each for each in names if each.removeprefix("transformer.") not in theirs} - flat == set()


@pytest.mark.parametrize("name", COMFYUI_ALONE)
def test_what_the_stock_loader_knows_only_by_comfyuis_names_has_these(name):
    assert all(each.startswith("diffusion_model.") for each in names_of(name))


@pytest.fixture(params=SOME)
def eraser(request):
    """A MODEL and a LoRA on it, each on a whole linear of ComfyUI."""
    patcher = new_model(request.param)
    with training_session(patcher, torch.float32) as model:
        lora = model.attach(targets_of(request.param), 2, torch.Generator().manual_seed(0))
        for up in lora.up:
            up.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        tensors = lora.tensors(torch.float32)
    return patcher, by_module(eraser_for(patcher, tensors, {}, "ours"))


STYLES = {
    "kohya": ("lora_unet_{flat}", "lora_down.weight", "lora_up.weight"),
    "OneTrainer": ("lora_transformer_{flat}", "lora_down.weight", "lora_up.weight"),
    "ai-toolkit": ("diffusion_model.{path}", "lora_A.weight", "lora_B.weight"),
    "peft": ("base_model.model.{path}", "lora_A.default.weight", "lora_B.default.weight"),
    "DiffSynth": ("{path}", "lora_A.default.weight", "lora_B.default.weight"),
}


def written(modules, style):
    """The same LoRA as another tool writes it."""
    stem, down, up = STYLES[style]
    tensors = {}
    for path, parts in modules.items():
        (part,) = parts
        front = stem.format(path=path, flat=path.replace(".", "_"))
        tensors |= {f"{front}.{down}": part.factors.down, f"{front}.{up}": part.factors.up}
        if "lora_down" in down:
            tensors[f"{front}.alpha"] = torch.tensor(float(len(part.factors.down)))
    return tensors


@pytest.mark.parametrize("style", STYLES)
def test_what_others_write_is_read(eraser, style):
    patcher, modules = eraser
    tensors = written(modules, style) | {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(2, 2)
    }
    found = by_module(eraser_for(patcher, tensors, {}, "theirs"))
    assert found.keys() == modules.keys()
    for path, (part,) in found.items():
        assert torch.equal(part.factors.up, modules[path][0].factors.up)
        assert torch.equal(part.factors.down, modules[path][0].factors.down)
    assert "the text encoder are left out (1)" in left_out_note(tensors, "theirs")


@pytest.mark.parametrize("key, kind", (("dora_scale", "DoRA"), ("lokr_w1", "LoKr")))
def test_other_kinds_are_refused_by_name(eraser, key, kind):
    patcher, modules = eraser
    tensors = written(modules, "kohya")
    stem = next(iter(tensors)).removesuffix(".lora_down.weight")
    with pytest.raises(ValueError, match=f"is {kind}, which cannot be combined"):
        eraser_for(patcher, tensors | {f"{stem}.{key}": torch.ones(2, 2)}, {}, "theirs")


def test_a_whole_model_says_its_family(pack, tmp_path, monkeypatch):
    """Save Erased Checkpoint on Qwen-Image."""
    import folder_paths
    from pack_under_test.eraseanything_core.lora.files import LoraModel
    from pack_under_test.nodes.shared.loras import LINKED

    folders = ([str(tmp_path)], {".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", folders)
    patcher = new_model("QwenImage")
    with training_session(patcher, torch.float32) as model:
        lora = model.attach("text k,v", 2, torch.Generator().manual_seed(0))
        for up in lora.up:
            up.data.fill_(0.1)
        tensors = lora.tensors(torch.float32)
    linked = LoraModel(tensors, {"eraseanything.concept": "star"})
    values = {"model": patcher, "lora": linked, "file": LINKED, "strength": 1.0, "output_name": "erased"}
    path = execute(pack["EraseAnything_ExportCheckpoint"], values).args[0]
    with safe_open(path, "pt") as file:
        header = file.metadata()
        assert len(file.keys()) == len(patcher.model.diffusion_model.state_dict())
    assert header["modelspec.architecture"] == "QwenImage" == header["eraseanything.family"]
    assert "black-forest-labs" not in header["modelspec.implementation"]
