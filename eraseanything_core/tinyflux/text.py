"""TinyFlux's text encoder: a small T5-style encoder over ComfyUI's own T5 pieces.

It is trained before the generator, to say of every piece which word of the world it belongs to, which object that
word names and in which colour, and of the whole prompt which concepts it holds. So the meaning of a word sits at
the word's own pieces, as it mostly does in T5, and a misspelt or prefixed word means what the right one means.
"""

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..comfy_bridge.architecture import t5_tokenizer
from .captions import CONCEPTS, GENERIC, VOCABULARY, training_prompt
from .world import BACKGROUNDS, COLOURS, Scene, draw_scene

PAD, VOCABULARY_SIZE, LENGTH = 0, 32128, 32
NAMES = ("other", *(c for group in CONCEPTS.values() for c in group), *COLOURS, *BACKGROUNDS, "generic")
IGNORE = -100


class Layer(nn.Module):
    """Pre-norm self-attention with a learned bias for relative positions, and a gated feed-forward."""

    def __init__(self, width: int, heads: int, reach: int = 16):
        super().__init__()
        self.heads, self.reach = heads, reach
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 6 * width, bias=False), nn.Linear(3 * width, width, bias=False)
        self.near = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [b, l, width], mask [b, l] true at real pieces."""
        b, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(length, device=x.device)
        near = self.near[:, (place[:, None] - place[None, :]).clamp(-self.reach, self.reach) + self.reach]
        bias = near[None].masked_fill(~mask[:, None, None, :], -1e4).to(q.dtype)  # [b, heads, l, l]
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(b, length, width))
        gate, value = self.up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * value)


class TextEncoder(nn.Module):
    """T5 pieces [b, l] -> states [b, l, 128], zero at padding, and a pooled vector [b, 64]."""

    def __init__(self, width: int = 128, pooled: int = 64, heads: int = 4, layers: int = 3):
        super().__init__()
        self.embed, self.widen = nn.Embedding(VOCABULARY_SIZE, 64), nn.Linear(64, width, bias=False)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.pool = nn.Linear(width, pooled)
        nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        mask = pieces != PAD
        x = self.widen(self.embed(pieces))
        for layer in self.layers:
            x = layer(x, mask)
        states = self.norm(x) * mask[..., None]
        pooled = self.pool(states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))
        return states, pooled


def pieces_of(tokenizer, texts: list[str]) -> Tensor:
    """T5 pieces of some prompts, [n, l] with l at least 32, padded on the right; the end token included."""
    rows = tokenizer(texts)["input_ids"]
    length = max(LENGTH, *(len(row) for row in rows))
    return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])


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


def labelled_batch(rng: random.Random, tokenizer, count: int) -> tuple[Tensor, Tensor, Tensor]:
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

    def __init__(self):
        super().__init__()
        self.encoder = TextEncoder()
        self.word, self.thing, self.colour = nn.Linear(128, len(NAMES)), nn.Linear(128, 2), nn.Linear(128, len(COLOURS))
        self.concepts = nn.Linear(64, len(VOCABULARY) // 4)

    def forward(self, pieces: Tensor, targets: Tensor, concepts: Tensor) -> tuple[Tensor, dict[str, float]]:
        states, pooled = self.encoder(pieces)
        states = states + 0.15 * torch.randn_like(states) * (pieces != PAD)[..., None]
        heads = {"word": self.word, "thing": self.thing, "colour": self.colour}
        logits = {name: head(states).flatten(0, 1).float() for name, head in heads.items()}
        losses = {n: F.cross_entropy(logits[n], targets[..., i].flatten()) for i, n in enumerate(heads)}
        losses["pooled"] = F.binary_cross_entropy_with_logits(self.concepts(pooled).float(), concepts)
        told = targets[..., 0].flatten() > 0
        right = (logits["word"].argmax(-1) == targets[..., 0].flatten())[told].float().mean()
        return sum(losses.values()), {n: v.item() for n, v in losses.items()} | {"right": right.item()}


def train(steps: int, batch: int, seed: int, log, lr: float = 2e-3) -> dict[str, Tensor]:
    """Trains from scratch and returns the encoder's state dict; `right` in the log is of distorted training prompts."""
    torch.manual_seed(seed)
    rng, tokenizer = random.Random(seed), t5_tokenizer().tokenizer
    model = Trainee().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss, parts = model(*labelled_batch(rng, tokenizer, batch))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(step, parts)
    return model.encoder.state_dict()


def known_pieces(tokenizer) -> set[int]:
    """Every piece that a word of the world is made of, the special ones included."""
    words = [*VOCABULARY, *COLOURS, *BACKGROUNDS, *GENERIC]
    rows = tokenizer([*words, *(w + "," for w in words)])["input_ids"]
    return {piece for row in rows for piece in row} | set(tokenizer.all_special_ids)


def replace_fillers(rng: random.Random, pieces: Tensor, targets: Tensor, strangers: list[int], rate: float) -> Tensor:
    """The pieces with some of the words that name nothing of the world replaced by strange ones."""
    other = (targets[..., 0] == 0) & (torch.rand(pieces.shape) < rate)
    strange = torch.tensor([rng.choice(strangers) for _ in range(int(other.sum()))], dtype=pieces.dtype)
    return pieces.masked_scatter(other, strange)


def steady(state: dict[str, Tensor], steps: int, batch: int, seed: int, log, lr: float = 1e-3) -> dict[str, Tensor]:
    """Teaches an encoder that a word it never saw is a filler, and leaves its states for known prompts as they are.

    The encoder before is the teacher: a prompt whose fillers are replaced by strange pieces shall have the states of
    the prompt without the replacement.
    """
    torch.manual_seed(seed)
    rng, tokenizer = random.Random(seed), t5_tokenizer().tokenizer
    teacher, student = TextEncoder(), TextEncoder()
    for encoder in (teacher, student):
        encoder.load_state_dict(state)
    teacher.requires_grad_(False)
    strangers = sorted(set(range(3, VOCABULARY_SIZE - 100)) - known_pieces(tokenizer))
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        pieces, targets, _ = labelled_batch(rng, tokenizer, batch)
        strange = replace_fillers(rng, pieces, targets, strangers, rate=rng.choice((0.0, 0.3, 0.8)))
        with torch.autocast("cpu", torch.bfloat16):
            wanted, found = teacher(pieces), student(strange)
        loss = F.mse_loss(found[0].float(), wanted[0].float()) + F.mse_loss(found[1].float(), wanted[1].float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            log(step, {"steady": loss.item()})
    return student.state_dict()
