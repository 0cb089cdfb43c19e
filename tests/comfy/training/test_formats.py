"""Base weights as ComfyUI loads them: the LoRA's gradient on each format, held against the same weights unpacked."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import comfy.ops
import comfy.sd
import folder_paths
import gguf
import numpy as np
import pytest
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from eraseanything_core.comfy_bridge.text import ComfyTextEncoder
from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.training import trainer
from eraseanything_core.training.plan import prepare
from eraseanything_core.training.trajectory_cache import TrajectoryCache

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
CITY96 = Path(os.environ["COMFYUI_PATH"]) / "custom_nodes" / "ComfyUI-GGUF"
ROWS, ROTATED = {"per_channel": True}, {"per_channel": True, "convrot": True}
QUANTISED = [(form, {}) for form in QUANT_ALGOS] + [("int8_tensorwise", ROWS), ("int8_tensorwise", ROTATED)]


def load(state, **options):
    with torch.inference_mode():
        return comfy.sd.load_diffusion_model_state_dict({k: v.clone() for k, v in state.items()}, model_options=options)


def is_linear(name, tensor):
    return name.endswith(".weight") and tensor.ndim == 2 and "blocks" in name and "modulation" not in name


def quantised(state, form, options=None):
    """A state dict as ComfyUI's quantised checkpoints hold it, and the same with the weights unpacked again."""
    options = options or {}
    packed, plain = {}, {}
    for name, tensor in state.items():
        if not is_linear(name, tensor):
            packed[name] = plain[name] = tensor
            continue
        held = QuantizedTensor.from_float(tensor.float(), QUANT_ALGOS[form]["comfy_tensor_layout"], **options)
        packed |= held.state_dict(name)
        told = json.dumps({"format": form, **options}).encode()
        packed[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
        plain[name] = held.dequantize()
    return packed, plain


def gradient(patcher, clip, config, checkpoint=False):
    """Of both levels at the first pair, with adapters that are not zero."""
    plan = prepare(config, ComfyTextEncoder(clip))
    with training_session(patcher, torch.float32, checkpoint) as model:
        lora = model.attach("all_qkv", 4, torch.Generator().manual_seed(0))
        for up in lora.up:
            up.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
        epoch = TrajectoryCache(model, plan).epoch(0)
        both = [torch.optim.SGD(lora.parameters(), lr=0.0) for _ in range(2)]
        trainer.train_pair(model, plan, epoch, 0, lora, both)
        return torch.cat([p.grad.flatten() for p in lora.parameters()])


def close(found, expected, error):
    assert expected.norm() > 0 and (found - expected).norm() < error * expected.norm()


def aligned(found, expected):
    return float(torch.nn.functional.cosine_similarity(found, expected, dim=0))


@pytest.fixture
def state(make_flux):
    return dict(make_flux(torch.bfloat16).state_dict())


@pytest.fixture
def config(config):
    from dataclasses import replace

    return replace(config, alternate=False, max_grad_norm=1e9, sampling_steps=2, cached_trajectories=2)


@pytest.mark.parametrize("checkpoint", (False, True), ids=("plain", "checkpointed"))
@pytest.mark.parametrize("dtype", (torch.float16, *FP8), ids=str)
def test_narrow_weights(state, clip, config, dtype, checkpoint):
    """UNETLoader's weight_dtype: the gradient is that of the rounded weights, and near that of bf16."""
    rounded = {k: v.to(dtype).bfloat16() if dtype in FP8 else v for k, v in state.items()}
    found = gradient(load(state, dtype=dtype), clip, config, checkpoint)
    close(found, gradient(load(rounded), clip, config, checkpoint), 1e-3)
    assert aligned(found, gradient(load(state), clip, config)) > (0.9 if dtype in FP8 else 0.999)


def round_no_inputs(patcher):
    """Makes the linears multiply what they are given with the unpacked weights; ComfyUI rounds the inputs as well."""
    for module in patcher.model.diffusion_model.modules():
        if isinstance(getattr(module, "weight", None), QuantizedTensor):
            module.comfy_force_cast_weights = True
            module._forward = lambda x, w, b: torch.nn.functional.linear(x, getattr(w, "dequantize", lambda: w)(), b)


@pytest.mark.parametrize("form, options", QUANTISED, ids=str)
def test_quantised_tensors(state, clip, config, form, options):
    """All that ComfyUI has. Backward is exact for the unpacked weights: it rounds no gradient."""
    packed, plain = quantised(state, form, options)
    patcher, expected = load(packed), gradient(load(plain, dtype=torch.float32), clip, config)
    weight = patcher.model.diffusion_model.double_blocks[0].img_attn.qkv.weight
    assert isinstance(weight, QuantizedTensor)
    assert aligned(gradient(patcher, clip, config), gradient(load(state), clip, config)) > 0.9
    round_no_inputs(patcher)
    close(gradient(patcher, clip, config), expected, 1e-4)


def test_smoothed_inputs(state, clip, config):
    """ModelOpt's pre_quant_scale multiplies a linear's input, so it multiplies the gradient to it as well."""
    packed, plain = quantised(state, "nvfp4")
    scale = torch.linspace(0.5, 1.5, 256)
    for name in [n for n in plain if is_linear(n, plain[n]) and plain[n].shape[1] == 256]:
        packed[name.removesuffix("weight") + "pre_quant_scale"] = scale
        plain[name] = (plain[name].float() * scale).to(plain[name])
    close(gradient(load(packed), clip, config), gradient(load(plain), clip, config), 0.05)


def test_partly_loaded(state, clip, config):
    """What --lowvram leaves in main memory is cast when it is used; ComfyUI marks such layers this way."""
    patcher = load(state)
    for i, module in enumerate(patcher.model.diffusion_model.modules()):
        if hasattr(module, "comfy_cast_weights") and i % 2:
            module.comfy_cast_weights = True
    close(gradient(patcher, clip, config), gradient(load(state), clip, config), 1e-6)


K_SCALES = {"Q4_K": {0: 2.4e-4, 2: 1.8e-3}, "Q6_K": {208: 5e-5}}  # where a block's halves lie, and fit values


def k_blocks(form, rows, columns):
    """Random blocks of a K form with sensible scales: the package can only unpack these."""
    count, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[form]]
    blocks = np.random.default_rng(rows).integers(0, 256, (rows, columns // count, size), dtype=np.uint8)
    for place, scale in K_SCALES[form].items():
        blocks[..., place : place + 2] = np.frombuffer(np.float16(scale).tobytes(), np.uint8)
    return blocks.reshape(rows, -1)


def ggml(form):
    """Operations as city96's GGUF nodes have them, in short: GGML's own blocks, which the layer itself unpacks."""

    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state_dict, prefix, *args):
            weight = state_dict[prefix + "weight"].float().numpy()
            chosen = "Q8_0" if form in K_SCALES and weight.shape[1] % 256 else form
            self.kind = gguf.GGMLQuantizationType[chosen]
            blocks = k_blocks(form, *weight.shape) if chosen in K_SCALES else gguf.quantize(weight, self.kind)
            self.weight = torch.nn.Parameter(torch.from_numpy(blocks), requires_grad=False)
            self.bias = torch.nn.Parameter(state_dict[prefix + "bias"], requires_grad=False)

        def unpacked(self):
            return torch.from_numpy(gguf.dequantize(self.weight.numpy(), self.kind))

        def cast_bias_weight(self, x):
            return self.unpacked().to(x), self.bias.to(x)

        def forward(self, x):
            return torch.nn.functional.linear(x, *self.cast_bias_weight(x))

    return type("GGML", (comfy.ops.manual_cast,), {"Linear": Linear})


@pytest.fixture
def of_blocks(state, clip, config):
    """The gradient on every linear in GGML's blocks, held to that on the unpacked weights."""

    def found(form):
        packed, plain = load(state, custom_operations=ggml(form)), dict(state)
        for name, module in packed.model.diffusion_model.named_modules():
            if hasattr(module, "unpacked"):
                plain[name + ".weight"] = module.unpacked()
        flux_ = packed.model.diffusion_model
        assert flux_.img_in.weight.dtype == torch.uint8 and flux_.single_blocks[0].linear1.kind.name == form
        found = gradient(packed, clip, config)
        close(found, gradient(load(plain, dtype=torch.float32), clip, config), 1e-4)
        return found

    return found


@pytest.mark.parametrize("form, likeness", (("Q8_0", 0.99), ("Q5_1", 0.95), ("Q4_0", 0.85)))
def test_layers_that_unpack_themselves(of_blocks, state, clip, config, form, likeness):
    """The files and the loader itself are not here."""
    assert aligned(of_blocks(form), gradient(load(state), clip, config)) > likeness


@pytest.mark.parametrize("form", K_SCALES)
def test_k_blocks(of_blocks, form):
    """Of random bytes, so there are no weights before them to be like."""
    assert of_blocks(form).isfinite().all()


@pytest.fixture
def load_gguf(tmp_path, monkeypatch):
    """A state dict through a file and city96's own node; and the same state with the weights unpacked again."""
    spec = importlib.util.spec_from_file_location("city96", CITY96 / "__init__.py")
    monkeypatch.setitem(sys.modules, "city96", node := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(node)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", ([str(tmp_path)], {".gguf"}))

    def loaded(state, form):
        writer, plain = gguf.GGUFWriter(tmp_path / "flux.gguf", "flux"), {}
        for name, tensor in state.items():
            kind = gguf.GGMLQuantizationType[form if is_linear(name, tensor) else "F32"]
            blocks = gguf.quantize(tensor.float().numpy(), kind)
            writer.add_tensor(name, blocks, raw_dtype=kind)
            plain[name] = torch.from_numpy(gguf.dequantize(blocks, kind))
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write()
        writer.close()
        with torch.inference_mode():
            return node.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet("flux.gguf")[0], plain

    return loaded


@pytest.mark.skipif(not CITY96.is_dir(), reason="ComfyUI-GGUF is not among ComfyUI's custom nodes")
@pytest.mark.parametrize("checkpoint", (False, True), ids=("plain", "checkpointed"))
@pytest.mark.parametrize("form, likeness", (("Q8_0", 0.99), ("Q5_1", 0.95), ("Q4_0", 0.85)))
def test_city96s_node(state, clip, config, load_gguf, form, likeness, checkpoint):
    """It unpacks in half precision where nothing else is asked."""
    packed, plain = load_gguf(state, form)
    weight = packed.model.diffusion_model.double_blocks[0].txt_attn.qkv.weight
    assert type(packed).__name__ == "GGUFModelPatcher" and weight.tensor_type.name == form
    found = gradient(packed, clip, config, checkpoint)
    close(found, gradient(load(plain, dtype=torch.float32), clip, config), 2e-3)
    assert aligned(found, gradient(load(state), clip, config)) > likeness
