"""AttentionErase on a small model, and the full softmax with scaled columns that it has to be equal to."""

from functools import partial
from types import SimpleNamespace

import comfy.sample
import pytest
import torch
from comfy.nested_tensor import NestedTensor

from tests.comfy.case import PLACES, TOKENS
from tests.comfy.layouts import CASES
from tests.comfy.tiny import new_model


def new_family(name):
    """A model and a made-up prompt for it."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(2)
    context = torch.randn(1, TOKENS, case.width, generator=generator)
    pooled = torch.randn(1, case.features, generator=generator)
    positive = [[context, {"pooled_output": pooled, **case.more}]]
    return SimpleNamespace(name=name, case=case, model=new_model(name), positive=positive, context=context)


def sample(family, model, negative=None):
    if family.name == "HiDreamO1":
        model.model.diffusion_model.clear_kv_cache()  # ComfyUI does not when another LoRA comes
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(2, *family.case.size, generator=generator)
    if family.case.sound:
        noise = NestedTensor((noise[:1], torch.randn(1, *family.case.sound, generator=generator)))
    with torch.inference_mode():
        latents = comfy.sample.sample(
            model, noise, family.case.steps, 1.0 if negative is None else 3.0, "euler", "simple", family.positive,
            negative or family.positive, noise * 0, disable_pbar=True, seed=0,
        )  # fmt: skip
    if not family.case.sound:
        return latents
    return torch.cat([part.flatten() for part in latents.unbind()])


def erased(core, model, family, **values):
    blocks = core.Blocks(values.pop("blocks", "all"))
    layout = core.layout(model)
    with torch.inference_mode():
        known = tuple(layout.texts.of_conditioning(model, *entry) for entry in family.positive)
    prompt = core.LocatedPrompt([""] * TOKENS, {"star": values.pop("places", list(PLACES))}, (), known)
    config = core.MapErasure(**{"strength": 0.0, "blocks": blocks} | values)
    return core.with_hook(model, core.hooks.EraseHook(prompt, (1e9, 0.0), config, layout))


class Explicit:
    """Another pack's override: the full softmax, with the columns of the text's keys changed."""

    def __init__(self, case, strength=1.0, renormalise=False, image_only=False):
        self.case, self.strength, self.renormalise, self.image_only = case, strength, renormalise, image_only
        self.changed = 0

    def on(self, model):
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = self
        return clone

    def sample(self, family, model, *negative):
        """Where the attention takes no options, ComfyUI's function itself has to be another one."""
        if not self.case.attention_module:
            return sample(family, self.on(model), *negative)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.case.attention_module, "optimized_attention", partial(self, None))
            return sample(family, model, *negative)

    def __call__(self, _, q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **rest):
        if not skip_reshape:
            q = split_heads(q, heads)
            k = split_heads(k, heads)
            v = split_heads(v, heads)
        if k.shape[1] < q.shape[1]:
            groups = q.shape[1] // k.shape[1]
            k = k.repeat_interleave(groups, dim=1)
            v = v.repeat_interleave(groups, dim=1)
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = torch.softmax(logits if mask is None else logits + mask, dim=-1)
        if k.shape[2] == self.case.keys and q.shape[2] != TOKENS and self.strength < 1:
            self.changed += 1
            rows = slice(*self.case.image if self.image_only else (None,))
            part = weights[:, :, rows].clone()
            part[..., self.case.columns] *= self.strength
            weights[:, :, rows] = part / part.sum(-1, keepdim=True) if self.renormalise else part
        return weights @ v if skip_output_reshape else (weights @ v).transpose(1, 2).flatten(2)


def split_heads(x, heads):
    """[b, tokens, features] to [b, heads, tokens, d]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def close(actual, expected, plain, part=1e-3):
    moved = (plain - expected).abs().max()
    assert moved > 1e-3 * plain.abs().max(), "erasing changed nothing: the test says nothing"
    assert (actual - expected).abs().max() < part * moved
