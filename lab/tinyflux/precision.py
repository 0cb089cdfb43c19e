"""In which precision TinyFlux computes on this machine."""

import torch

# Some CPUs have no bf16 arithmetic. There PyTorch emulates it, and a matmul takes about 40 times as long as in float32.
HAS_BF16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
DTYPE = torch.bfloat16 if HAS_BF16 else torch.float32


def autocast() -> torch.autocast:
    """A context in which modules compute in `DTYPE`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=HAS_BF16)
