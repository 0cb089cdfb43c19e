"""What the seam reads of the attention in every family, against the full softmax; and FLUX.1 on both of its roads."""

from functools import partial

import pytest
import torch

from tests.comfy.case import PLACES
from tests.comfy.columns import Explicit
from tests.comfy.families.small import FAMILIES, small_model


class Reader(Explicit):
    """The full softmax, whose columns of the text's keys are kept."""

    def __init__(self, case):
        super().__init__(case)
        self.seen = []

    def __call__(self, _, q, k, v, heads, mask=None, skip_reshape=False, **rest):
        out = super().__call__(_, q, k, v, heads, mask, skip_reshape, **rest)
        q, k = (x if skip_reshape else x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
        if k.shape[1] < q.shape[1]:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        if k.shape[2] == self.case.keys and q.shape[2] != 21:
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
            weights = torch.softmax(logits if mask is None else logits + mask, dim=-1)
            self.seen.append(weights[:, :, slice(*self.case.image)][..., self.case.columns].sum(-1, keepdim=True))
        return out


@pytest.mark.parametrize("name", FAMILIES)
def test_columns_are_those_of_the_full_softmax(name, monkeypatch):
    with small_model(name, dtype=torch.float32) as small:
        model = small.model
        select = torch.zeros(2, small.prompt.context.shape[1], 1)
        select[:, list(PLACES)] = 1
        capture = model.capture(select)
        reader = Reader(small.family.case)
        run = partial(reader, None)
        monkeypatch.setattr("eraseanything_core.comfy_bridge.any_model.attention_pytorch", run)
        cond = model.conds([small.prompt] * 2, 3.0)
        with torch.no_grad():
            whole = model.velocity(small.x, small.t, cond, adapters=True, capture=capture)
            alone = model.columns(small.x, small.t, cond, adapters=True, capture=model.capture(select))
        assert whole.shape == small.x.shape and capture.maps
        for block, columns in capture.maps.items():
            assert any(columns.shape == seen.shape and torch.allclose(columns, seen, atol=1e-5) for seen in reader.seen)
            assert torch.equal(columns, alone[block])
