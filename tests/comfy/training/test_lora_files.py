"""The LoRA means the same in our trainer, in the stock LoraLoader and in diffusers."""

import logging

import comfy.lora
import comfy.model_management
import comfy.sd
import nodes
import pytest
import torch

from eraseanything_core.comfy_bridge.model import Cond
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.lora.adapter import Lora
from eraseanything_core.lora.files import load_lora, save_lora
from eraseanything_core.lora.keys import TRAINABLE, target_slices

EVERY = "+".join(TRAINABLE)


def trained(model, targets):
    """Attaches adapters with random B, as if they had been trained."""
    made = model.attach(targets, 8, torch.Generator().manual_seed(0))
    for i, up in enumerate(made.up):
        up.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(i))
    return made


def case():
    g = torch.Generator().manual_seed(9)
    x, context, pooled = (torch.randn(*s, generator=g) for s in ((2, 16, 12, 12), (2, 32, 128), (2, 64)))
    return x, torch.tensor([0.9, 0.25]), Cond(context, pooled, torch.tensor([2.0, 2.0]))


def relative(a, b):
    return float((a - b).norm() / b.norm())


def stock_velocity(patcher, x, sigma, cond):
    comfy.model_management.load_models_gpu([patcher])
    with torch.inference_mode():
        x_0 = patcher.model.apply_model(
            x, sigma, c_crossattn=cond.context, y=cond.pooled, guidance=cond.guidance, transformer_options={}
        )
        return (x - x_0) / sigma[:, None, None, None]


@pytest.mark.parametrize("targets", ("paper", EVERY), ids=("paper", "every_target"))
def test_the_stock_loader_applies_all_of_it(patcher, targets, tmp_path, monkeypatch, caplog):
    """LoraLoader itself, from a file: no unmatched key, and the erased velocity is the student's."""
    with training_session(patcher) as model:
        made = trained(model, targets)
        student = model.velocity(*case(), adapters=True).detach()
        base = model.velocity(*case(), adapters=False)
    path = save_lora(made.tensors(torch.float32), tmp_path / "eraser.safetensors", {"concept": "star"})
    monkeypatch.setattr("folder_paths.get_full_path_or_raise", lambda kind, name: str(path))
    with caplog.at_level(logging.WARNING):
        patched, _ = nodes.LoraLoader().load_lora(patcher, None, "eraser.safetensors", 1.0, 1.0)
    assert not [r.message for r in caplog.records if "not loaded" in r.message.lower()]
    assert len(patched.patches) == len({part.module for part in made.parts})
    assert sum(map(len, patched.patches.values())) == len(made.parts)
    error = relative(stock_velocity(patched, *case()), student)
    print(f"stock loader against the student: {error:.1e}; the LoRA changes {relative(student, base):.2f}")
    assert error < 1e-4 and relative(student, base) > 0.01
    comfy.model_management.load_models_gpu([patcher])


@pytest.mark.parametrize("targets", ("paper", EVERY), ids=("paper", "every_target"))
def test_diffusers_loads_it_and_agrees(make_flux, to_diffusers, patcher, targets, tmp_path):
    """The converted model gives the same velocities, without and with the LoRA, by diffusers' own loader."""
    with training_session(patcher) as model:
        made = trained(model, targets)
        base, student = (model.velocity(*case(), adapters=on).detach() for on in (False, True))
    theirs = to_diffusers(make_flux())
    base_error = relative(diffusers_velocity(theirs, *case()), base)
    path = save_lora(made.tensors(torch.float32), tmp_path / "eraser.safetensors", {"concept": "star"})
    theirs.load_lora_adapter(str(tmp_path), weight_name=path.name, prefix="transformer")
    adapted = sum("lora_A" in name for name, _ in theirs.named_parameters())
    error = relative(diffusers_velocity(theirs, *case()), student)
    print(f"diffusers against the bridge: base {base_error:.1e}, erased {error:.1e}, {adapted} adapters")
    assert base_error < 1e-4 and error < 1e-4 and adapted == len(made.parts)


def test_diffusers_pipeline_reads_the_file(patcher, tmp_path):
    """`load_lora_weights` of the Flux pipeline: it takes every key and sees no alpha."""
    from diffusers.loaders import FluxLoraLoaderMixin

    with training_session(patcher) as model:
        made = trained(model, EVERY)
    save_lora(made.tensors(), tmp_path / "eraser.safetensors", {"concept": "star"})
    state, alphas = FluxLoraLoaderMixin.lora_state_dict(
        str(tmp_path), weight_name="eraser.safetensors", return_alphas=True
    )
    assert set(state) == set(made.tensors()) and not alphas


def diffusers_velocity(model, x, sigma, cond):
    b, c, h, w = x.shape
    packed = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)
    ids = torch.zeros(h // 2, w // 2, 3)
    ids[..., 1] += torch.arange(h // 2)[:, None]
    ids[..., 2] += torch.arange(w // 2)[None]
    with torch.no_grad():
        out = model(
            hidden_states=packed,
            encoder_hidden_states=cond.context,
            pooled_projections=cond.pooled,
            timestep=sigma,
            img_ids=ids.flatten(0, 1),
            txt_ids=torch.zeros(cond.context.shape[1], 3),
            guidance=cond.guidance,
        ).sample
    return out.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


def test_core_lora_nodes_take_the_output(patcher, tmp_path, monkeypatch):
    """LORA_MODEL in Load LoRA Model and Save LoRA Weights."""
    from comfy_extras import nodes_train

    with training_session(patcher) as model:
        made = trained(model, "paper")
        student = model.velocity(*case(), adapters=True).detach()
    patched = nodes_train.LoraModelLoader.execute(patcher, made.tensors(torch.float32), 1.0)[0]
    assert relative(stock_velocity(patched, *case()), student) < 1e-4
    monkeypatch.setattr("folder_paths.get_output_directory", lambda: str(tmp_path))
    nodes_train.SaveLoRA.execute(made.tensors(), "loras/x")
    (saved,) = tmp_path.rglob("*.safetensors")
    assert set(load_lora(saved)[0]) == set(made.tensors())
    comfy.model_management.load_models_gpu([patcher])


def test_presets_name_slices_that_comfyui_knows(patcher):
    """Every target of every block maps to the fused weight and the rows that core's own table has."""
    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    p = patcher.model.diffusion_model.params
    for part in target_slices(EVERY, p.hidden_size, p.depth, p.depth_single_blocks, p.mlp_ratio):
        known = keys[f"transformer.{part.key}"]
        name, rows = known if isinstance(known, tuple) else (known, (0, 0, part.rows))
        assert name == f"diffusion_model.{part.module}.weight"
        assert rows == (0, part.start, part.rows)


def test_flux_dev_file_is_3_57_mib(tmp_path):
    """At the true shapes, built on the meta device: 76 tensors, 1,867,776 parameters."""
    parts = target_slices("paper", 3072, 19, 38, 4.0)
    made = Lora(parts, 8, device="meta")
    tensors = made.tensors()
    count = sum(t.numel() for t in tensors.values())
    path = save_lora({k: torch.zeros(t.shape, dtype=t.dtype) for k, t in tensors.items()}, tmp_path / "x", {})
    print(f"{len(tensors)} tensors, {count} parameters, {path.stat().st_size / 2**20:.2f} MiB")
    assert (len(tensors), count) == (76, 1_867_776)
    assert round(path.stat().st_size / 2**20, 2) == 3.57
