"""The bridge: the one module of the core that imports ComfyUI; it runs the Flux that ComfyUI has loaded."""

import copy
import hashlib
import sys
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import NamedTuple

import comfy.cli_args
import torch

if "comfy.model_management" not in sys.modules and not torch.cuda.is_available():
    comfy.cli_args.args.cpu = True  # outside a server nobody has parsed --cpu, and ComfyUI would ask for CUDA

import comfy.model_base
import comfy.model_management
import comfy.ops
import torch.nn.functional as F
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.attention import attention_pytorch
from comfy.taesd.taesd import TAESD, Block
from comfy.text_encoders.flux import T5XXLTokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from . import trainer
from .attention import attention_columns
from .lora import Lora, slices
from .sampling import euler
from .tokens import pieces_of


def _initialise(module: nn.Module) -> nn.Module:
    """ComfyUI's layers leave their weights unset; give them PyTorch's usual initial values."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.RMSNorm) or type(layer).__name__ == "RMSNorm":
            nn.init.ones_(layer.weight)
    return module


def new_flux(config: dict, dtype=torch.float32, device="cpu") -> Flux:
    """ComfyUI's Flux with fresh weights; `config` holds the fields of its FluxParams."""
    return _initialise(Flux(dtype=dtype, device=device, operations=comfy.ops.disable_weight_init, **config))


def new_autoencoder(latent_channels: int) -> TAESD:
    """ComfyUI's TAESD with fresh weights: He's initial values, residual branches small, so that signals survive."""
    taesd = TAESD(latent_channels=latent_channels)
    for layer in taesd.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for block in taesd.modules():
        if isinstance(block, Block):
            block.conv[-1].weight.data.mul_(0.2)
    return taesd


def t5_tokenizer(min_length: int = 256) -> T5XXLTokenizer:
    """ComfyUI's own T5 tokenizer, padding to `min_length` pieces."""
    return T5XXLTokenizer(tokenizer_data={"t5xxl_min_length": min_length})


@contextmanager
def exact_gradients(flux: Flux, checkpoint: bool = False):
    """Makes backpropagation through ComfyUI's Flux exact.

    Its blocks add residuals in place, which overwrites what LayerNorm saved for backward; so every LayerNorm
    works on a copy of its input here. `in_training` makes RoPE differentiable.

    Args:
        flux: the module; it is as before when the context ends.
        checkpoint: recompute each block in backward instead of keeping its activations.
    """
    norms, blocks = [], [*flux.double_blocks, *flux.single_blocks]
    for block in flux.double_blocks:
        norms += [block.img_norm1, block.img_norm2, block.txt_norm1, block.txt_norm2]
    norms += [block.pre_norm for block in flux.single_blocks]
    handles = [norm.register_forward_pre_hook(lambda _, args: (args[0].clone(),)) for norm in norms]
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        for block in blocks if checkpoint else ():
            block.forward = _recomputed(block.forward)
        yield
    finally:
        comfy.model_management.in_training = before
        for handle in handles:
            handle.remove()
        for block in blocks if checkpoint else ():
            block.__dict__.pop("forward", None)


def _recomputed(forward):
    """A block's forward, recomputed in backward on copies: it overwrites its streams, and the caller its options."""

    def run(*args, transformer_options, **rest):
        streams = {name: rest.pop(name) for name in ("img", "txt") if name in rest}
        rest["transformer_options"] = dict(transformer_options)

        def on_copies(*args, **streams):
            return forward(*(x.clone() for x in args), **{name: x.clone() for name, x in streams.items()}, **rest)

        return recompute(on_copies, *args, use_reentrant=False, preserve_rng_state=False, **streams)

    return run


class _FrozenLinear(torch.autograd.Function):
    """A linear whose weight needs no gradient: backward asks the module for the weight again.

    Autograd would save the weight, which it refuses for the inference tensors that ComfyUI's loaders make, and
    which keeps a cast copy alive for every quantised or offloaded layer. This saves nothing.
    """

    @staticmethod
    def forward(ctx, x, module, run):
        ctx.module = module
        return run(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        weight, _, offload = comfy.ops.cast_bias_weight(ctx.module, grad, offloadable=True)
        x_grad = grad @ weight
        comfy.ops.uncast_bias_weight(ctx.module, weight, None, offload)
        return x_grad, None, None


def private_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A second module tree over the same weights, free to hook and to train adapters on.

    The caller's modules are not touched. Linears share their weights whatever these are (inference tensors,
    quantised, offloaded); what is wider than `dtype` is cast once; the small scales of the norms are copied.
    """
    twin = copy.copy(module)
    twin.__dict__.pop("forward", None)  # core's own training leaves one behind
    twin._forward_pre_hooks, twin._forward_hooks = OrderedDict(), OrderedDict()
    twin._modules = {name: private_copy(child, dtype) for name, child in module._modules.items()}
    linear = isinstance(module, nn.Linear) or hasattr(module, "in_features")
    twin._parameters = {name: _frozen(p, dtype, linear) for name, p in module._parameters.items()}
    if hasattr(module, "comfy_cast_weights") and any(p.dtype != dtype for p in module.parameters(recurse=False)):
        twin.comfy_cast_weights = True
    if linear:
        run = twin.forward
        twin.forward = lambda x: _FrozenLinear.apply(x, twin, run) if x.requires_grad else run(x)
    return twin


def _frozen(parameter: nn.Parameter | None, dtype: torch.dtype, share: bool) -> nn.Parameter | None:
    if parameter is None or (share and not parameter.requires_grad and parameter.dtype.itemsize <= dtype.itemsize):
        return parameter
    kept = parameter.detach()
    wide = kept.dtype.itemsize > dtype.itemsize
    return nn.Parameter(kept.to(dtype) if wide else kept if share else kept.clone(), requires_grad=False)


class Cond(NamedTuple):
    """What the prompt and the user give to the transformer, for a batch of b."""

    context: Tensor  # b tokens features
    pooled: Tensor  # b features
    guidance: Tensor  # b


class Capture:
    """Asks a forward for attention columns of dual blocks, and holds them.

    Attributes:
        select: [b, text tokens, c], the columns as `attention_columns` takes them.
        blocks: the dual blocks to read; None is all of them.
        maps: a block's index to [b, heads, image queries, c], filled by the forward.
    """

    def __init__(self, select: Tensor, blocks: tuple[int, ...] | None = None):
        self.select, self.blocks = select, blocks
        self.maps: dict[int, Tensor] = {}

    def read(self, q: Tensor, k: Tensor, block: int):
        """Reads out a block; when a recomputation passes here again, the first result stays."""
        text = self.select.shape[1]
        select = F.pad(self.select, (0, 0, 0, k.shape[2] - text))
        columns = attention_columns(q[:, :, text:], k, select)
        self.maps.setdefault(block, columns)


class _Stop(Exception):
    """Ends a forward whose attention was all that was asked."""


class FluxModel:
    """The seam: a loaded Flux as a velocity, with trainable slices that can be on or off.

    Attributes:
        lora: the adapters; `attach` replaces them.
        device, dtype: where and in what precision the transformer computes.
        channels, downscale: the latent's channels and pixels a cell.
        mu: the sampling shift that the model carries.
    """

    def __init__(self, module: Flux, device, dtype: torch.dtype, mu: float = 1.15, downscale: int = 8):
        self.module, self.device, self.dtype = module, torch.device(device), dtype
        self.channels, self.downscale, self.mu = module.params.out_channels, downscale, mu
        self.lora: Lora | None = None
        self.adapters = True  # off only inside a teacher's forward: a recomputation in backward is the student's

    def attach(self, targets: str | tuple[str, ...], rank: int, generator: torch.Generator) -> Lora:
        """Puts fresh adapters onto the targets' slices; B is zero, so nothing changes yet."""
        p = self.module.params
        parts = slices(targets, p.hidden_size, p.depth, p.depth_single_blocks, p.mlp_ratio)
        self.lora = Lora(parts, rank, generator, self.device)
        for name, indices in self.lora.by_module().items():
            linear = self.module.get_submodule(name)
            linear.forward = self._adapted(linear.forward, indices)
        return self.lora

    def _adapted(self, forward, indices: list[int]):
        return lambda x: self.lora.add(indices, x, forward(x)) if self.adapters else forward(x)

    def cond(self, context: Tensor, pooled: Tensor, guidance: float) -> Cond:
        """A batch of conditions at one guidance."""
        return Cond(context, pooled, torch.full((len(context),), float(guidance)))

    def capture(self, select: Tensor, blocks: tuple[int, ...] | None = None) -> Capture:
        """A request for attention columns, for `velocity` and `columns`."""
        return Capture(select, blocks)

    def velocity(self, x_t: Tensor, sigma: Tensor, cond: Cond, adapters: bool, capture: Capture | None = None):
        """v(x_t, t, cond); without adapters it is the frozen model's and carries no gradient.

        Args:
            x_t: [b, c, h, w] in the model's own latent space.
            sigma: [b], t in [0, 1].
            cond: as long as the batch.
            adapters: whether the trained slices take part.
            capture: attention columns to read on the way.

        Returns:
            [b, c, h, w] in x_t's dtype.
        """
        return self._run(x_t, sigma, cond, adapters, capture, stop=False)

    def columns(self, x_t: Tensor, sigma: Tensor, cond: Cond, adapters: bool, capture: Capture) -> dict[int, Tensor]:
        """Only the attention columns: the forward ends at the last block that is asked. See `Capture.maps`."""
        with suppress(_Stop):
            self._run(x_t, sigma, cond, adapters, capture, stop=True)
        return capture.maps

    def trajectory(self, cond: Cond, noise: Tensor, sigmas: Tensor, adapters: bool = False):
        """Euler's walk of the frozen model (or of the adapted one) from noise; yields (x_t, v), see `euler`."""
        with torch.no_grad():
            yield from euler(lambda x, t: self.velocity(x, t, cond, adapters), noise, sigmas)

    def _run(self, x_t, sigma, cond, adapters, capture, stop):
        cast = {"device": self.device, "dtype": self.dtype}
        self.adapters = adapters
        try:
            with torch.set_grad_enabled(adapters and torch.is_grad_enabled()):
                v = self.module(
                    x_t.to(**cast),
                    sigma.to(self.device),
                    context=cond.context.to(**cast),
                    y=cond.pooled.to(**cast),
                    guidance=cond.guidance.to(**cast),
                    transformer_options={"optimized_attention_override": self._attention(capture, stop)},
                )
        finally:
            self.adapters = True
        return v.to(x_t.dtype)

    def _attention(self, capture: Capture | None, stop: bool):
        last = len(self.module.double_blocks) - 1
        wanted = range(last + 1) if capture is None or capture.blocks is None else capture.blocks

        def attend(_, q, k, v, heads, *args, transformer_options, **kwargs):
            block = transformer_options["block_index"]
            if capture and transformer_options["block_type"] == "double" and block in wanted:
                done = len(capture.maps) == len(wanted)
                capture.read(q, k, block)
                if stop and not done and len(capture.maps) == len(wanted):
                    raise _Stop
            return attention_pytorch(q, k, v, heads, *args, **kwargs)

        return attend


def check_model(patcher):
    """Refuses what cannot be trained on exactly.

    Raises:
        ValueError: no Flux.1, compiled, or changed by another node.
    """
    base = patcher.model
    inner = getattr(base, "diffusion_model", None)
    compiled = hasattr(inner, "_orig_mod") or "torch_compile_kwargs" in patcher.model_options
    if compiled or any("diffusion_model" in key for key in patcher.object_patches):
        raise ValueError("the MODEL is compiled: connect it without the compile node")
    plain = type(base) is comfy.model_base.Flux and isinstance(inner, Flux)
    if not plain or inner.in_channels != inner.out_channels:
        raise ValueError(f"the MODEL is a {type(base).__name__}: only a text-to-image Flux.1 can be trained here")
    options = {k: v for k, v in patcher.model_options.get("transformer_options", {}).items() if v}
    changes = patcher.patches or patcher.weight_wrapper_patches or patcher.injections or patcher.hook_patches
    wrapped = any(found for kind in patcher.wrappers.values() for found in kind.values())
    if changes or options or wrapped or "model_function_wrapper" in patcher.model_options:
        raise ValueError("the MODEL is already patched (a LoRA or another node): connect it straight from its loader")


@contextmanager
def borrow(patcher, dtype: torch.dtype | None = None, checkpoint: bool = False, memory: int = 0):
    """Runs a loaded Flux through a private copy of its modules; the caller's MODEL stays as it is.

    Args:
        patcher: the MODEL of a loader node.
        dtype: precision of the transformer; None is the one that ComfyUI would use.
        checkpoint: see `exact_gradients`.
        memory: bytes to keep free for activations.

    Yields:
        A FluxModel, to be used only inside the context.

    Raises:
        ValueError: see `check_model`.
    """
    check_model(patcher)
    with torch.inference_mode(False), torch.enable_grad():
        # Streamed weights live in buffers of their own; a static copy is read from the file instead.
        static = patcher.clone(disable_dynamic=True)
        comfy.model_management.load_models_gpu([static], memory_required=memory)
        dtype = dtype or static.model.get_dtype_inference()
        module = private_copy(static.model.diffusion_model, dtype)
        with exact_gradients(module, checkpoint):
            mu = static.get_model_object("model_sampling").shift
            downscale = static.model.latent_format.spacial_downscale_ratio
            yield FluxModel(module, static.load_device, dtype, mu, downscale)


class TextEncoder:
    """Prompts to what the transformer and the span search need, each prompt encoded once."""

    def __init__(self, clip):
        self.clip, self.cache = clip, {}

    def pieces(self, text: str) -> list[str]:
        """The T5 pieces of a prompt as it is encoded."""
        rows = self.clip.tokenize(text)["t5xxl"]
        return [piece for row in rows for piece in pieces_of(self.clip.tokenizer.t5xxl, row)]

    def encode(self, text: str) -> tuple[Tensor, Tensor]:
        """context [1, tokens, features] and pooled [1, features], on the CPU and free of inference mode."""
        if text not in self.cache:
            with torch.inference_mode(False), torch.no_grad():
                context, pooled = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True)
                self.cache[text] = context.cpu().clone(), pooled.cpu().clone()
        return self.cache[text]


def train_eraser(patcher, clip, config, progress=None, run_dir=None):
    """Trains an eraser on a loaded Flux; see `trainer.train`.

    Args:
        patcher: MODEL of the stock UNETLoader; it is bit for bit as before afterwards.
        clip: CLIP of the text encoder's loader.
        config: `trainer.EraseConfig`.
        progress: called as progress(step, losses) after every step.
        run_dir: folder of the run's state; what is there is resumed.

    Returns:
        `trainer.EraseResult`; when the user interrupts, what was trained up to then.

    Raises:
        ValueError: see `check_model` and `trainer.prepare`.
        FloatingPointError: a loss became NaN or infinite.
    """
    check_model(patcher)
    with torch.inference_mode(False):
        plan = trainer.prepare(config, TextEncoder(clip))
    memory = patcher.model.memory_required([4 * config.batch, 16, config.height // 8, config.width // 8])
    with borrow(patcher, config.torch_dtype(), config.checkpoint, memory) as model:
        stops = (comfy.model_management.InterruptProcessingException, KeyboardInterrupt)
        return trainer.train(model, plan, progress, stops, run_dir)


def fingerprint(patcher) -> str:
    """Names a set of weights: SHA-256 over the names, shapes and 64 values of every tensor of the transformer."""
    digest = hashlib.sha256()
    for name, tensor in patcher.model.diffusion_model.state_dict().items():
        flat = tensor.detach().flatten()
        places = torch.linspace(0, flat.numel() - 1, 64, dtype=torch.float64).long().to(flat.device)
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + flat[places].float().cpu().numpy().tobytes())
    return digest.hexdigest()
