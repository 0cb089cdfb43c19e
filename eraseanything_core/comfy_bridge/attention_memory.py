"""What the attention of a device keeps for backward, found by running it once."""

from functools import lru_cache
from typing import NamedTuple

import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

TOKENS = 64  # of the first of two attentions that are run; the second has twice as many


class AttentionCost(NamedTuple):
    """Bytes that one head keeps for backward beyond what a fused attention does.

    Attributes:
        pair: for each query and key. A fused attention keeps no matrix, so this is 0.
        token: for each token.
    """

    pair: float
    token: float

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
    once = _kept_bytes(device, dtype, width, TOKENS)
    twice = _kept_bytes(device, dtype, width, 2 * TOKENS)
    # kept(n) = pair n^2 + token n, known at two n.
    pair = (twice - 2 * once) / (2 * TOKENS**2)
    token = (4 * once - twice) / (2 * TOKENS)
    # Queries, keys, values, the output, and the logarithm of each query's sum in float32.
    fused = 4 * width * dtype.itemsize + 4
    # A fused kernel may round the tokens up to whole tiles, which looks like a fraction of a byte for each pair.
    return AttentionCost(pair, max(0.0, token - fused)) if pair >= 1 else FUSED


def _kept_bytes(device: torch.device, dtype: torch.dtype, width: int, tokens: int) -> int:
    """Bytes that an attention of one head saves for backward."""
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        # By storage: several views of one tensor may be saved.
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.inference_mode(False), torch.enable_grad():
        q, k, v = (torch.zeros(1, 1, tokens, width, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            attention_pytorch(q, k, v, heads=1, skip_reshape=True)
    return sum(storages.values())
