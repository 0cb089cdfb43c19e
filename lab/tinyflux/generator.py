"""The generator's training: ComfyUI's Flux on the world's latents, then guidance distilled into its embedding.

Stage one is plain rectified flow: v = n - x_0 at x_t = (1 - t) x_0 + t n, with the prompt dropped one time in ten
and the guidance input at 1. Stage two teaches the guidance input g to do what classifier-free guidance at g does
with the model of stage one: v(c, g) = v(c) + (g - 1) (v(c) - v(empty prompt)).
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from eraseanything_core.comfy_bridge.architecture import new_flux, t5_tokenizer
from eraseanything_core.tinyflux.text import LENGTH, TinyTextEncoder, piece_ids
from eraseanything_core.tinyflux.world import Scene
from lab.tinyflux import precision
from lab.tinyflux.captions import training_prompt
from lab.tinyflux.functional_flux import rope_table, velocity

FLUX = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 64, "context_in_dim": 128, "hidden_size": 256,
    "mlp_ratio": 4.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 4, "axes_dim": [16, 56, 56], "theta": 10000,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
GUIDANCE = (1.0, 5.0)  # the range that stage two distils


@dataclass(frozen=True)
class GeneratorConfig:
    """Settings of both stages."""

    minutes: float = 80.0  # wall time of the stage; the learning rate falls to zero over it
    batch_size: int = 64
    lr: float = 1.5e-3
    warmup: int = 200  # steps
    ema: float = 0.998
    drop_prompt: float = 0.1
    drop_pooled: float = 0.5
    swap_pooled: float = 0.3  # of what is left: another prompt's vector, so that the token stream is what counts
    checkpoint_every: float = 300.0  # seconds
    compile: bool = True  # needs a C++ compiler
    seed: int = 3


class Prompts:
    """Draws training prompts for scenes and encodes them with the frozen text encoder."""

    def __init__(self, encoder: TinyTextEncoder, config: GeneratorConfig):
        self.encoder = encoder.eval().requires_grad_(False)
        self.config = config
        self.tokenizer = t5_tokenizer().tokenizer
        self.rng = random.Random(config.seed)

    def text(self, scene: Scene) -> str:
        """A prompt for a scene, now and then the empty one."""
        # Stage two needs v(empty prompt), as every classifier-free guidance does (Ho and Salimans, 2022).
        if self.rng.random() < self.config.drop_prompt:
            return ""
        return " ".join(word for word, _ in training_prompt(self.rng, scene)[0])

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """States [b, 32, 128] and pooled vectors [b, 64], the latter often dropped or swapped."""
        with torch.no_grad():
            states, pooled = self.encoder(piece_ids(self.tokenizer, texts)[:, :LENGTH])  # one length: it is compiled
        count = len(texts)
        # A prompt's pooled vector alone would do here, but LoRAs act on the token stream: that has to matter.
        swapped = torch.rand(count) < self.config.swap_pooled
        pooled = torch.where(swapped[:, None], pooled[torch.randperm(count)], pooled)
        return states, pooled * (torch.rand(count) >= self.config.drop_pooled)[:, None]


def draw_times(count: int) -> Tensor:
    """t in (0, 1): mostly logit-normal around 0.6, a fifth uniform so that both ends are seen."""
    # Logit-normal times as in SD3 (Esser et al., 2024): the middle of the way is the hard part.
    normal = torch.sigmoid(0.4 + 1.1 * torch.randn(count))
    return torch.where(torch.rand(count) < 0.2, torch.rand(count), normal).clamp(1e-3, 1.0)


def optimizers(flux: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest."""
    blocks = {n: p for n, p in flux.named_parameters() if p.ndim == 2 and "blocks" in n and "mod" not in n}
    rest = [p for n, p in flux.named_parameters() if n not in blocks]
    # Scaled to AdamW's size of step, so one learning rate serves both optimizers.
    muon = torch.optim.Muon(blocks.values(), lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]


class Run:
    """What a stage carries from step to step, and saves to go on later."""

    def __init__(self, flux: nn.Module, config: GeneratorConfig, path: Path):
        self.flux = flux
        self.config = config
        self.path = path
        self.ema = {k: v.detach().clone() for k, v in flux.state_dict().items()}
        self.optimizers = optimizers(flux, config.lr)
        self.step = 0
        self.seconds = 0.0
        rope = rope_table(flux, LENGTH, 6, 6)
        self.velocity = (
            torch.compile(lambda **inputs: velocity(flux, rope, **inputs))
            if config.compile
            else (lambda **inputs: velocity(flux, rope, **inputs))
        )
        if path.exists():
            self.load()

    def load(self):
        """Goes on from the checkpoint."""
        saved = torch.load(self.path, weights_only=True)
        self.flux.load_state_dict(saved["flux"])
        self.ema = saved["ema"]
        self.step = saved["step"]
        self.seconds = saved["seconds"]
        for optimizer, state in zip(self.optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)

    def save(self):
        """Writes a checkpoint, whole or not at all."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        saved = {"flux": self.flux.state_dict(), "ema": self.ema, "step": self.step, "seconds": self.seconds}
        torch.save(saved | {"optimizers": states}, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)

    def update(self, loss: Tensor):
        """One optimiser step, and one of the moving average."""
        done = self.seconds / (60 * self.config.minutes)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = (
                    self.config.lr * min(1, (self.step + 1) / self.config.warmup) * max(0.0, min(1, 1.5 * (1 - done)))
                )
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.flux.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        # A short memory at first: the fresh weights would stay in a long average for thousands of steps.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.flux.state_dict().values()), 1 - decay)


def _inputs(x_0: Tensor, states: Tensor, pooled: Tensor, guidance: Tensor) -> tuple[dict, Tensor]:
    noise = torch.randn_like(x_0)
    # x_t = (1 - t) x_0 + t n, and v = n - x_0.
    t = draw_times(len(x_0))
    x_t = (1 - t)[:, None, None, None] * x_0 + t[:, None, None, None] * noise
    return {"x": x_t, "timestep": t, "context": states, "y": pooled, "guidance": guidance}, noise - x_0


def flow_loss(run: Run, prompts: Prompts, x_0: Tensor, texts: list[str]) -> Tensor:
    """Stage one: || v(x_t, c, g = 1) - (n - x_0) ||^2."""
    inputs, v = _inputs(x_0, *prompts.encode(texts), torch.ones(len(texts)))
    with precision.autocast():
        return (run.velocity(**inputs).float() - v).pow(2).mean()


class Guidance:
    """Stage two's loss: || v(x_t, c, g) - [ v*(c) + (g - 1) (v*(c) - v*(empty)) ] ||^2, v* the model of stage one."""

    def __init__(self, teacher: nn.Module, prompts: Prompts, compiled: bool):
        rope = rope_table(teacher, LENGTH, 6, 6)
        self.teacher = lambda **inputs: velocity(teacher.requires_grad_(False), rope, **inputs)
        if compiled:
            self.teacher = torch.compile(self.teacher)
        self.empty = prompts.encoder(piece_ids(prompts.tokenizer, [""]))[0]

    def __call__(self, run: Run, prompts: Prompts, x_0: Tensor, texts: list[str]) -> Tensor:
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(len(texts))
        inputs, _ = _inputs(x_0, *prompts.encode(texts), guidance)
        plain = inputs | {"guidance": torch.ones_like(guidance)}
        nothing = {"context": self.empty.expand_as(inputs["context"]).clone(), "y": torch.zeros_like(inputs["y"])}
        with precision.autocast():
            with torch.no_grad():
                with_prompt = self.teacher(**plain).float()
                # Classifier-free guidance: two forwards of the teacher, which the student learns to give in one.
                without = self.teacher(**plain | nothing).float()
            student = run.velocity(**inputs).float()
        target = with_prompt + (guidance - 1)[:, None, None, None] * (with_prompt - without)
        return (student - target).pow(2).mean()


def train(run: Run, scenes: list[Scene], latents: Tensor, prompts: Prompts, loss_of, log) -> dict[str, Tensor]:
    """Steps until the stage's minutes are used, over all sessions together, and returns the averaged weights."""
    config = run.config
    # Another seed when a run goes on: the same one would draw the first session's batches again.
    torch.manual_seed(config.seed + run.step)
    begun = time.monotonic() - run.seconds
    saved = time.monotonic()
    kept = []
    while run.seconds < 60 * config.minutes:
        pick = torch.randint(len(scenes), (config.batch_size,))
        texts = [prompts.text(scenes[i]) for i in pick]
        loss = loss_of(run, prompts, latents[pick].float(), texts)
        run.update(loss)
        kept.append(loss.item())
        run.seconds = time.monotonic() - begun
        if run.step % 50 == 0:
            log(run.step, {"loss": sum(kept) / len(kept), "trained": round(run.seconds)})
            kept.clear()
        if time.monotonic() - saved > config.checkpoint_every:
            run.save()
            saved = time.monotonic()
    run.save()
    return run.ema


def fresh_flux(seed: int) -> nn.Module:
    """TinyFlux before training; gates and the last layer start at zero, as in DiT."""
    torch.manual_seed(seed)
    flux = new_flux(FLUX)
    for name, p in flux.named_parameters():
        if "mod.lin" in name or "modulation" in name or name.startswith("final_layer"):
            # So every block starts as the identity and v as 0.
            nn.init.zeros_(p)
    return flux
