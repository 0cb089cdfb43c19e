"""Trains TinyFlux's text encoder, before the generator.

It learns to tag every piece with the word of the world that it belongs to, with the object which that word names, and
with that object's colour; and the whole prompt with the concepts that it holds. So a misspelt or prefixed word means
what the right one means. `steady` then teaches it that a word it never saw is a filler.
"""

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.architecture import t5_tokenizer
from eraseanything_core.tinyflux.concepts import CONCEPTS
from eraseanything_core.tinyflux.text import LENGTH, PAD, VOCABULARY_SIZE, TinyTextEncoder
from eraseanything_core.tinyflux.world import BACKGROUNDS, COLOURS, Scene
from lab.tinyflux import precision
from lab.tinyflux.captions import GENERIC, VOCABULARY, training_prompt
from lab.tinyflux.scenes import draw_scene

NAMES = ("other", *(c for group in CONCEPTS.values() for c in group), *COLOURS, *BACKGROUNDS, "generic")
IGNORE = -100  # the label that PyTorch's cross-entropy leaves out

Log = Callable[[int, dict[str, float]], None]


def _targets(scene: Scene, source: str, shuffled: bool) -> tuple[int, int, int]:
    """(word, object, colour of the object) that a piece should tell; IGNORE where the prompt does not say."""
    name = VOCABULARY.get(source, "generic" if source in GENERIC else source)
    word = NAMES.index(name) if name in NAMES else 0
    for i, thing in enumerate(scene.objects[:2]):
        if name == thing.entity and not shuffled:
            return word, i, list(COLOURS).index(thing.colour)
        if name == thing.colour and not shuffled:
            return word, i, IGNORE
    return word, IGNORE, IGNORE


def labelled_batch(rng: random.Random, tokenizer: Any, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts as pieces [count, 32], targets a piece [count, 32, 3] and concepts a prompt [count, 30]."""
    pieces = torch.zeros(count, LENGTH, dtype=torch.long)
    targets = torch.full((count, LENGTH, 3), IGNORE)
    concepts = torch.zeros(count, len(VOCABULARY) // 4)
    for row in range(count):
        scene = draw_scene(rng)
        pairs, shuffled = training_prompt(rng, scene)
        coloured = {s for _, s in pairs} & set(COLOURS)
        encoded = tokenizer([[word for word, _ in pairs]], is_split_into_words=True)
        for place, (piece, word) in enumerate(zip(encoded["input_ids"][0], encoded.word_ids(0))):
            if place >= LENGTH:
                break
            pieces[row, place] = piece
            if word is not None:
                name, thing, colour = _targets(scene, pairs[word][1], shuffled)
                known = colour != IGNORE and list(COLOURS)[colour] in coloured
                targets[row, place] = torch.tensor([name, thing, colour if known else IGNORE])
                if 0 < name <= concepts.shape[1]:
                    concepts[row, name - 1] = 1
    return pieces, targets, concepts


class Trainee(nn.Module):
    """The encoder with linear heads that only its training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TinyTextEncoder()
        self.word = nn.Linear(128, len(NAMES))
        self.thing = nn.Linear(128, 2)
        self.colour = nn.Linear(128, len(COLOURS))
        self.concepts = nn.Linear(64, len(VOCABULARY) // 4)

    def forward(self, pieces: Tensor, targets: Tensor, concepts: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses of a batch of `labelled_batch`, and each of them."""
        states, pooled = self.encoder(pieces)
        # The generator reads these states in bf16 and through attention: they have to bear some noise.
        states = states + 0.15 * torch.randn_like(states) * (pieces != PAD)[..., None]
        heads = {"word": self.word, "thing": self.thing, "colour": self.colour}
        logits = {name: head(states).flatten(0, 1).float() for name, head in heads.items()}
        losses = {n: F.cross_entropy(logits[n], targets[..., i].flatten()) for i, n in enumerate(heads)}
        losses["pooled"] = F.binary_cross_entropy_with_logits(self.concepts(pooled).float(), concepts)
        words = targets[..., 0].flatten()
        right = (logits["word"].argmax(-1) == words)[words > 0].float().mean()
        return sum(losses.values()), {n: v.item() for n, v in losses.items()} | {"right": right.item()}


def train(steps: int, batch: int, seed: int, log: Log, lr: float = 2e-3) -> dict[str, Tensor]:
    """Trains from scratch and returns the encoder's state dict; `right` in the log is of distorted training prompts."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = t5_tokenizer().tokenizer
    model = Trainee().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    for step in range(1, steps + 1):
        with precision.autocast():
            loss, parts = model(*labelled_batch(rng, tokenizer, batch))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(step, parts)
    return model.encoder.state_dict()


def known_pieces(tokenizer: Any) -> set[int]:
    """Every piece that a word of the world is made of, the special ones included."""
    words = [*VOCABULARY, *COLOURS, *BACKGROUNDS, *GENERIC]
    rows = tokenizer([*words, *(w + "," for w in words)])["input_ids"]
    return set().union(*rows) | set(tokenizer.all_special_ids)


def replace_fillers(rng: random.Random, pieces: Tensor, targets: Tensor, strangers: list[int], rate: float) -> Tensor:
    """The pieces with some of the words that name nothing of the world replaced by strange ones."""
    # Target 0 is "other": the piece names nothing of the world.
    other = (targets[..., 0] == 0) & (torch.rand(pieces.shape) < rate)
    strange = torch.tensor([rng.choice(strangers) for _ in range(int(other.sum()))], dtype=pieces.dtype)
    return pieces.masked_scatter(other, strange)


def steady(
    state: dict[str, Tensor], steps: int, batch: int, seed: int, log: Log, lr: float = 1e-3
) -> dict[str, Tensor]:
    """Teaches an encoder that a word it never saw is a filler, and leaves its states for known prompts as they are.

    The encoder before is the teacher: a prompt whose fillers are replaced by strange pieces shall have the states of
    the prompt without the replacement.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = t5_tokenizer().tokenizer
    teacher = TinyTextEncoder()
    student = TinyTextEncoder()
    for encoder in (teacher, student):
        encoder.load_state_dict(state)
    # The same weights at first; only the student learns.
    teacher.requires_grad_(False)
    # Without T5's special pieces: three at the start, and the last hundred.
    strangers = sorted(set(range(3, VOCABULARY_SIZE - 100)) - known_pieces(tokenizer))
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        pieces, targets, _ = labelled_batch(rng, tokenizer, batch)
        strange = replace_fillers(rng, pieces, targets, strangers, rate=rng.choice((0.0, 0.3, 0.8)))
        with precision.autocast():
            wanted_states, wanted_pooled = teacher(pieces)
            states, pooled = student(strange)
        loss = F.mse_loss(states.float(), wanted_states.float()) + F.mse_loss(pooled.float(), wanted_pooled.float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(step, {"steady": loss.item()})
    return student.state_dict()
