"""How far the gradient is from float64 where kernels round the inputs of linears: `python -m lab.gpu.rounding`.

The weights are in fp8. Inputs of the linears in the blocks are rounded to fp8, or to 4 bits in blocks of 16 as NVFP4
does it, and the gradient passes through as if they were not. Runs on a CPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lab.gpu.formats import FP8
from lab.gpu.gradients import CPU, cosine, gradients
from lab.gpu.small_model import on_card, random_flux

LARGEST_8 = 448.0
VALUES_4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of e2m1
BLOCK = 16  # entries that share a scale
SMALLEST = 2.0**-9  # scale

Rounding = Callable[[Tensor], Tensor]


def to_8_bits(x: Tensor) -> Tensor:
    """x as fp8 holds it, at a scale of 1."""
    return x.float().clamp(-LARGEST_8, LARGEST_8).to(FP8).to(x.dtype)


def to_4_bits(x: Tensor) -> Tensor:
    """x as NVFP4 holds it: each block of 16 has a scale in fp8."""
    blocks = x.float().reshape(-1, BLOCK)
    scale = (blocks.abs().amax(1, keepdim=True) / VALUES_4[-1]).to(FP8).float().clamp(min=SMALLEST)
    grid = torch.tensor(VALUES_4)
    nearest = grid[((blocks / scale).abs()[..., None] - grid).abs().argmin(-1)]
    return (nearest * blocks.sign() * scale).view(x.shape).to(x.dtype)


def found(dtype: torch.dtype, rounding: Rounding | None) -> dict[str, Tensor]:
    """Gradients of the small model, computed in a type."""
    module = random_flux(torch.bfloat16)
    module.load_state_dict({name: tensor.to(FP8).float() for name, tensor in module.state_dict().items()})
    with on_card(module, dtype, CPU) as model:
        for name, layer in model.module.named_modules():
            if rounding and isinstance(layer, nn.Linear) and "blocks" in name and "mod" not in name:
                layer.forward = _rounded(layer.forward, rounding)
        return gradients(model)


def _rounded(forward: Callable[[Tensor], Tensor], rounding: Rounding) -> Callable[[Tensor], Tensor]:
    return lambda x: forward(x + (rounding(x.detach()) - x.detach()))


def main() -> None:
    """Prints the cosine of each loss."""
    expected = found(torch.float64, None)
    for name, rounding in (("inputs as they are", None), ("inputs in fp8", to_8_bits), ("inputs in 4 bits", to_4_bits)):
        cosines = found(torch.bfloat16, rounding)
        print(name, {loss: round(cosine(cosines[loss], expected[loss]), 4) for loss in expected}, flush=True)


if __name__ == "__main__":
    main()
