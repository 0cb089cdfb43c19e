"""Small models of families with their base weights as ComfyUI loads them, and the same weights unpacked."""

import json

import gguf
import torch
from comfy.ops import manual_cast
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from tests.comfy.tiny import new_model

MULTIPLE = 64  # of rows and columns that every format takes, the groups of a rotation included


def packable(patcher):
    """The linears of a model that a quantised file would hold in few bits."""
    for name, layer in patcher.model.diffusion_model.named_modules():
        shape = (getattr(layer, "in_features", 1), getattr(layer, "out_features", 1))
        if not any(size % MULTIPLE for size in shape) and "mod" not in name:
            yield name, layer


def fill(patcher, weights):
    """The model with these weights in the place of its own."""
    for name, layer in packable(patcher):
        if name in weights:
            layer.weight.data.copy_(weights[name])
    return patcher


def quantised(name, form, options):
    """A model whose linears hold quantised tensors, and the model with the same weights unpacked."""
    plain = new_model(name)
    state = dict(plain.model.diffusion_model.state_dict())
    unpacked = {}
    for path, layer in packable(plain):
        held = QuantizedTensor.from_float(layer.weight.detach(), QUANT_ALGOS[form]["comfy_tensor_layout"], **options)
        unpacked[path] = held.dequantize()
        del state[f"{path}.weight"]
        state |= held.state_dict(f"{path}.weight")
        told = json.dumps({"format": form, **options}).encode()
        state[f"{path}.comfy_quant"] = torch.tensor(list(told), dtype=torch.uint8)
    packed = new_model(name, compute=torch.float32, quant_config={"mixed_ops": True})
    packed.model.diffusion_model.load_state_dict(state, strict=False)
    return packed, fill(plain, unpacked)


def round_no_inputs(patcher):
    """Makes the linears multiply what they are given with the unpacked weights; ComfyUI rounds the inputs as well."""
    for module in patcher.model.diffusion_model.modules():
        if isinstance(getattr(module, "weight", None), QuantizedTensor):
            module.comfy_force_cast_weights = True
            module._forward = lambda x, w, b: torch.nn.functional.linear(x, getattr(w, "dequantize", lambda: w)(), b)


class Blocks(torch.Tensor):
    """GGML's blocks, whose `shape` is that of the weight in them. ComfyUI reads sizes of a model off its weights."""

    unpacked_shape: torch.Size

    @classmethod
    def of(cls, blocks, shape):
        made = blocks.as_subclass(cls)
        made.unpacked_shape = shape
        return made

    @property
    def shape(self):
        return self.unpacked_shape


class Packed(manual_cast.Linear):
    """A linear whose weight lies in GGML's blocks and is unpacked by the layer itself, as city96's nodes do it."""

    kind = None

    def pack(self, kind):
        self.kind = kind
        blocks = gguf.quantize(self.weight.detach().float().numpy(), kind)
        packed = Blocks.of(torch.from_numpy(blocks), self.weight.shape)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)
        self.weight.unpacked_shape = packed.unpacked_shape

    def unpacked(self):
        return torch.from_numpy(gguf.dequantize(self.weight.as_subclass(torch.Tensor).numpy(), self.kind))

    def cast_bias_weight(self, x):
        weight = self.weight if self.kind is None else self.unpacked()
        return weight.to(x), None if self.bias is None else self.bias.to(x)

    def forward(self, x):
        return torch.nn.functional.linear(x, *self.cast_bias_weight(x))


def in_blocks(name, form):
    """A model in GGML's blocks, and the model with the same weights unpacked."""
    packed = new_model(name, operations=type("GGML", (manual_cast,), {"Linear": Packed}))
    unpacked = {}
    for path, layer in packable(packed):
        layer.pack(gguf.GGMLQuantizationType[form])
        unpacked[path] = layer.unpacked()
    return packed, fill(new_model(name), unpacked)


def narrow(name, dtype):
    """A model in a type that ComfyUI casts, and the model with the same weights in float32."""
    packed = new_model(name, dtype, torch.float32)
    return packed, in_float32(name, packed)


def in_float32(name, patcher):
    """The model with the weights of another in float32."""
    plain = new_model(name)
    weights = patcher.model.diffusion_model.state_dict()
    for key, weight in plain.model.diffusion_model.state_dict().items():
        weight.copy_(weights[key])
    return plain


def partly_loaded(name):
    """A model of whose layers every other one is left in main memory, as ComfyUI marks them, and a resident one."""
    packed = new_model(name)
    for i, layer in enumerate(packed.model.diffusion_model.modules()):
        if hasattr(layer, "comfy_cast_weights") and i % 2:
            layer.comfy_cast_weights = True
    return packed, new_model(name)
