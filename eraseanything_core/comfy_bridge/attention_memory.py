"""What the attention of a device keeps for backward, found by running it once."""

from functools import lru_cache
from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

TOKENS = 64  # of the first of two attentions that are run; the second has twice as many
# What a training takes on a card over what was told, by the attention that PyTorch chooses there: the figures
# "activations over estimate" of check 5 of `scripts/dev.py gpu`. All are 1, because nobody has run it yet.
FACTORS = {"flash": 1.0, "cudnn": 1.0, "efficient": 1.0, "math": 1.0}
# How autograd calls the fused ones.
NODES = {
    "ScaledDotProductFlashAttention": "flash",
    "ScaledDotProductCudnnAttention": "cudnn",
    "ScaledDotProductEfficientAttention": "efficient",
}


class AttentionCost(NamedTuple):
    """Bytes that one head keeps for backward beyond what a fused attention does.

    Attributes:
        pair: for each query and key. A fused attention keeps no matrix, so this is 0.
        token: for each token.
        factor: of all activations, as measured with this attention.
    """

    pair: float
    token: float
    factor: float = 1.0

    def kept_bytes(self, tokens: int, heads: int) -> tuple[int, int]:
        """Bytes of the matrices of one attention, and of all else, for the heads of a whole batch."""
        return int(heads * self.pair * tokens**2), int(heads * self.token * tokens)


FUSED = AttentionCost(0.0, 0.0)


@lru_cache(maxsize=8)
def attention_cost(device: torch.device, dtype: torch.dtype, width: int) -> AttentionCost:
    """What ComfyUI's attention, as a training runs it, keeps on a device.

    PyTorch chooses its kernel by device, type and width. Where none is fused the matrix of every attention is kept.

    Args:
        device: where the attention runs.
        dtype: of queries, keys and values.
        width: of a head.
    """
    once, kernel = _run(device, dtype, width, TOKENS)
    twice, _ = _run(device, dtype, width, 2 * TOKENS)
    # kept(n) = pair n^2 + token n, known at two n.
    pair = (twice - 2 * once) / (2 * TOKENS**2)
    token = (4 * once - twice) / (2 * TOKENS)
    # Queries, keys, values, the output, and the logarithm of each query's sum in float32.
    fused = 4 * width * dtype.itemsize + 4
    # A fused kernel may round the tokens up to whole tiles, which looks like a fraction of a byte for each pair.
    if pair >= 1:
        return AttentionCost(pair, max(0.0, token - fused), FACTORS["math"])
    return FUSED._replace(factor=FACTORS.get(kernel, 1.0))


def _run(device: torch.device, dtype: torch.dtype, width: int, tokens: int) -> tuple[int, str]:
    """Bytes that an attention of one head saves for backward, and the fused kernel that it took."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        # By storage: several views of one tensor may be saved.
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.inference_mode(False), torch.enable_grad():
        q, k, v = (torch.zeros(1, 1, tokens, width, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = attention_pytorch(q, k, v, heads=1, skip_reshape=True)
    return sum(storages.values()), kernel_of(output)


def kernel_of(output: Tensor) -> str:
    """The name in `FACTORS` of the fused attention that made a tensor, from its graph; empty for any other."""
    nodes = [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        for name, kernel in NODES.items():
            if node.name().startswith(name):
                return kernel
        nodes += [before for before, _ in node.next_functions]
    return ""
