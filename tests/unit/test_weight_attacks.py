"""The attacks on weights, as far as no model is needed: what a batch of theirs is, and on which device."""

import torch

from eraseanything_core.evaluation.weight_attacks import noised


def test_a_batch_is_noised_between_picture_and_noise():
    latents = torch.arange(3.0)[:, None, None, None].expand(3, 2, 4, 4)
    x_0, noise, t, x_t = noised(latents, 5, torch.Generator().manual_seed(0))
    way = t[:, None, None, None]
    assert torch.equal(x_t, (1 - way) * x_0 + way * noise) and x_0.shape == (5, 2, 4, 4)
    again = noised(latents, 5, torch.Generator().manual_seed(0))
    assert all(torch.equal(one, other) for one, other in zip((x_0, noise, t, x_t), again))


def test_a_batch_is_on_the_latents_device():
    """ComfyUI keeps latents on the card with --gpu-only; `meta` is a device that every PyTorch has."""
    latents = torch.ones(3, 2, 4, 4, device="meta")
    batch = noised(latents, 5, torch.Generator().manual_seed(0))
    assert {tensor.device.type for tensor in batch} == {"meta"}
