"""MACE (Lu et al., CVPR 2024) as a method of the trainer: its three stages before, in and after the steps of a run.

1. Before the first step the linear that brings the text in is solved anew: W' e = W g for the tokens e beside the
   concept and g in their places beside its super-category, the neutral text, and W' p = W p for what must stay. It is a
   LoRA that is on for the student alone, so that looks and previews compare with the original.
2. A step lowers 1/b sum_b sum_layers | A_b[mask_b, tokens_b] |_F^2 at x_t = (1 - t) x_0 + t n, on the pictures x_0
   at the ends of the concept's trajectories, with t from MACE's density. Masks are of the model's own attention.
3. After the last step A <- A G M^-1 at every linear that was trained; see `lora.fusion`.

`mace` has the same stages with pictures of its own, for the boards and a fleet's plan.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..concepts.prompts import Prompt
from ..lora.adapter import Lora
from ..lora.factors import Factors
from ..lora.fusion import FusionConfig, confinement, read_states
from ..lora.keys import file_keys
from ..lora.merge import truncated
from ..protocols import EncodedPrompt, ErasableModel, TrainableLora
from ..training.draws import Draw
from ..training.method import Extra, Method, Pair, setting
from ..training.objective import Losses
from ..training.plan import Plan, conds, generator
from ..transfers import on_device
from . import uce
from .aligned_states import guide_positions
from .mace_attention import GRID, AttentionConfig, attention_loss, density, own_masks
from .preserving_cache import summed_rows

MACE_SETTINGS: dict[str, Any] = {
    "targets": "text k,v",
    "rank": 1,
    "attn_weight": 0.0,
    "rsc_weight": 0.0,
    "retain_weight": 0.0,
    "on_policy_share": 0.0,  # its pictures are the original model's
    "importance_sampling": False,
    "synonym_rate": 0.0,
    "shuffle_rate": 0.0,
}
BY_ATTENTION = "attention"
LARGE = 4096.0  # what a weight is read with: its bias, which is added in 16 bits, then does not count


@dataclass(frozen=True)
class MaceSettings:
    """What MACE has beside the settings of a run."""

    masks: str = setting(
        BY_ATTENTION,
        "Where the attention is lowered. attention: where the model itself attends to the word; whole: everywhere, for "
        "styles.",
        choices=(BY_ATTENTION, "whole"),
    )
    level: float = setting(0.5, "Share of a map's largest value from which on a place is inside its mask.", 0.0, 1.0)
    lam: float = setting(uce.LAM, "How strongly the linear that reads the text holds on to itself.", 0.001, 1e6)


class Mace(Method):
    """MACE: refinement, attention inside masks, and fusion.

    Attributes:
        refined: the LoRA of stage 1, under its file keys.
        masks: of this epoch's pictures, by trajectory, [queries] bool.
        epoch: its number.
    """

    name = "mace"
    label = "MACE"
    own_settings = MaceSettings
    reads_attention = False
    takes_divergence = False

    def __init__(self, own: Any = None, extras: Sequence[Extra] = ()) -> None:
        super().__init__(own, extras)
        self.refined: dict[str, Tensor] = {}
        self.masks: dict[int, Tensor] = {}
        self.epoch = -1
        self.chances = density()

    @classmethod
    def run_settings(cls, own: Any) -> dict[str, Any]:
        return MACE_SETTINGS

    def begin(self, model: ErasableModel, plan: Plan, lora: TrainableLora) -> None:
        """Stage 1.

        Raises:
            ValueError: what is erased has no word, or the model's tokens are not those of its prompts.
        """
        if plan.config.unasked:
            raise ValueError("MACE needs a word to erase, and this look has none: choose another method")
        path, key = model.embedder()
        pairs = list(dict.fromkeys((sentence.concept, sentence.neutral) for sentence in plan.sentences))
        kept = [embedder_input(model, plan, path, prompt) for prompt in kept_prompts(plan)]
        states = [beside(model, plan, path, *pair) for pair in pairs]
        erased, guides = (torch.cat(side) for side in zip(*states, strict=True))
        # The preserving cache: however many prompts there are, as many rows as a state has features do.
        down, up = uce.edit(weight_of(model, path), erased, guides, summed_rows(kept), self.own.lam)
        # Its rank is the number of states, thousands of them; most of its directions are zero.
        factors = truncated({key: Factors(up, down)})[key]
        names = file_keys(key)
        self.refined = {names[0]: factors.down.contiguous(), names[1]: factors.up.contiguous()}
        model.attach_frozen_lora(self.refined, student=True)

    def erase(self, pair: Pair, draw: Draw) -> Iterator[Losses]:
        """Stage 2: `attention`."""
        model, walks, rng = pair.model, pair.epoch.concept, pair.rng
        row, _ = draw.erase
        x_0 = on_device(walks.x[row, -1], model.device)
        t = (torch.multinomial(self.chances, len(row), replacement=True, generator=rng) + 1).to(x_0) / GRID
        noise = on_device(model.noise_scale * torch.randn(x_0.shape, generator=rng), model.device).to(x_0)
        wide = t[:, None, None, None]
        concept = [walks.sources[i].concept for i in row]
        capture = model.capture(on_device(columns_of(pair.plan, concept), model.device), pair.config.attention_blocks)
        cond = conds(model, pair.plan, concept)
        maps = model.columns((1 - wide) * x_0 + wide * noise, t, cond, adapters=True, capture=capture)
        yield {"attention": attention_loss(maps, self.masks_of(pair, row.tolist(), next(iter(maps.values()))))}

    def masks_of(self, pair: Pair, rows: Sequence[int], like: Tensor) -> Tensor:
        """Where the concept is in the pictures of some trajectories, [b, queries] bool, on the device of `like`.

        Args:
            pair: the pair.
            rows: the trajectories.
            like: attention [b, heads, queries, columns].
        """
        if self.own.masks != BY_ATTENTION:
            return torch.ones(len(rows), like.shape[2], dtype=torch.bool, device=like.device)
        epoch = pair.step // pair.config.refresh_every
        if epoch != self.epoch:
            self.epoch, self.masks = epoch, {}
        for row in rows:
            if row not in self.masks:
                self.masks[row] = self.mask(pair, row)
        return torch.stack([self.masks[row] for row in rows]).to(like.device)

    def mask(self, pair: Pair, row: int) -> Tensor:
        """That of one picture, [queries]."""
        walks = pair.epoch.concept
        concept = [walks.sources[row].concept]
        x_0 = on_device(walks.x[row : row + 1, -1], pair.model.device)
        select = on_device(columns_of(pair.plan, concept), pair.model.device)
        config = AttentionConfig((), level=self.own.level)
        # By its number alone: a run that goes on finds the mask that it had.
        rng = generator(~pair.config.seed, row)
        return own_masks(pair.model, x_0, conds(pair.model, pair.plan, concept), select, config, rng)[0]

    def finish(self, model: ErasableModel, plan: Plan, lora: TrainableLora) -> bool:
        """Stage 3, on the states of the refined model."""
        assert isinstance(lora, Lora), "stage 3 changes factors"
        own = plan.config
        config = FusionConfig(width=own.width, height=own.height, guidance=own.guidance, seed=own.seed)
        modules = sorted({part.module for part in lora.parts})
        concept = list(dict.fromkeys(sentence.concept for sentence in plan.sentences))[: config.prompts]
        kept = kept_prompts(plan)[: config.kept_prompts]
        scale, lora.scale = lora.scale, 0.0
        try:
            of_concept = read_states(model, encodings(plan, concept), modules, config.rows, config, adapters=True)
            # Four times the rows: what must stay is more varied than one concept.
            of_kept = read_states(model, encodings(plan, kept), modules, 4 * config.rows, config, adapters=True)
        finally:
            lora.scale = scale
        for name, indices in lora.by_module().items():
            change = confinement(of_concept[name], of_kept[name], config)
            for i in indices:
                down = lora.down[i].data
                down.copy_(down.double() @ change.to(down.device))
        return True

    def tensors(self, lora: TrainableLora) -> dict[str, Tensor]:
        """Stage 1 and stage 3."""
        return self.refined | lora.tensors(torch.float32)


class InputRead(Exception):
    """Ends a forward of which only the input of one linear was wanted."""


def kept_prompts(plan: Plan) -> list[Prompt]:
    """What must stay: irrelevant words in the concept's place, and prompts to preserve where a loss has them."""
    near = [prompt for sentence in plan.sentences for prompt in sentence.irrelevant]
    return list(dict.fromkeys([*near, *plan.retained])) or [plan.sentences[0].neutral]


def encodings(plan: Plan, prompts: Iterable[Prompt]) -> list[EncodedPrompt]:
    """The prompts as the text encoder has them."""
    return [plan.encode(prompt.text) for prompt in prompts]


def embedder_input(model: ErasableModel, plan: Plan, path: str, prompt: Prompt) -> Tensor:
    """What the linear at a path is given for a prompt, [tokens, features], float32, on the CPU.

    Raises:
        ValueError: it is given other tokens than those of the prompt.
    """
    found: list[Tensor] = []

    def read(_: Any, args: tuple[Any, ...]) -> None:
        found.append(args[0].detach().flatten(0, -2).float().cpu())
        raise InputRead

    shape = (1, model.channels, plan.config.height // model.downscale, plan.config.width // model.downscale)
    x, t = torch.zeros(shape, device=model.device), torch.full((1,), model.last_time, device=model.device)
    handle = model.module.get_submodule(path).register_forward_pre_hook(read)
    try:
        with suppress(InputRead):
            model.velocity(x, t, conds(model, plan, [prompt]), adapters=False)
    finally:
        handle.remove()
    if len(found[0]) != len(plan.pieces[prompt.text]):
        raise ValueError("MACE cannot tell which token of a prompt is where in this model: choose another method")
    return found[0]


def beside(model: ErasableModel, plan: Plan, path: str, concept: Prompt, neutral: Prompt) -> tuple[Tensor, Tensor]:
    """The states of all tokens but the word's, padding included, and those in their places of the neutral text.

    Returns:
        Both [n, features].
    """
    pieces = plan.pieces[concept.text]
    places = guide_positions(pieces, concept.word, plan.pieces[neutral.text])
    # The encoder mixes all tokens, so the concept shows in the states of the others and of the padding as well.
    others = [i for i, own in enumerate(plan.select[concept].flatten().tolist()) if not own]
    own = embedder_input(model, plan, path, concept)
    guide = embedder_input(model, plan, path, neutral)
    return own[others], guide[[places[i] for i in others]]


def weight_of(model: ErasableModel, path: str) -> Tensor:
    """The weight of a linear, [rows, features], float32, on the CPU: read by what it does, in whatever form it lies."""
    linear: Any = model.module.get_submodule(path)
    features = linear.in_features
    with torch.no_grad():
        inputs = LARGE * torch.eye(features, device=model.device, dtype=model.dtype)
        outputs = linear(inputs) - linear(torch.zeros_like(inputs[:1]))
    return (outputs.float() / LARGE).T.cpu().contiguous()


def columns_of(plan: Plan, prompts: Sequence[Prompt]) -> Tensor:
    """One column for every token of each prompt's word, [b, tokens, columns]; what a prompt lacks is empty."""
    selects = []
    for prompt in prompts:
        own = plan.select[prompt].flatten()
        selects.append(torch.eye(len(own))[own.bool()])  # [columns, tokens]
    tokens = max(select.shape[1] for select in selects)
    wide = [torch.nn.functional.pad(select, (0, tokens - select.shape[1])) for select in selects]
    return pad_sequence(wide, batch_first=True).transpose(1, 2)
