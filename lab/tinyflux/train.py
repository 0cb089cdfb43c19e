"""Trains TinyFlux from nothing: `python -m lab.tinyflux.train [stage ...]`.

Stages, in order: text, steady, decoder, encoder, flux, guidance, redraw, judge. A stage whose result exists is
skipped; flux and guidance go on from their last checkpoint, decoder, encoder and flux start from
`state/<stage>_before.safetensors` if it is there. Each appends a line of JSON a report to `logs/<stage>.jsonl`.
Needs ComfyUI on the path: `python scripts/dev.py train` takes care of that.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from eraseanything_core.tinyflux.shapes import PAINT_STYLES
from lab.tinyflux import autoencoder, generator, judge_training, redraw, text_training
from lab.tinyflux.latents import scene_latent
from lab.tinyflux.pipeline import WEIGHTS, Pipeline, decoder, flux, text_encoder
from lab.tinyflux.scenes import draw_scene

HERE = Path(__file__).parent
STATE = HERE / "state"  # only needed to go on


class Log:
    """Appends one JSON line a report, with the seconds since the stage began."""

    def __init__(self, stage: str):
        self.path = HERE / "logs" / f"{stage}.jsonl"
        self.start = time.monotonic()

    def __call__(self, step: int, values: dict):
        row = {"step": step, "seconds": round(time.monotonic() - self.start, 1)}
        row |= {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def save(state: dict[str, torch.Tensor], path: Path, dtype: torch.dtype, about: str):
    """Writes a safetensors file under a temporary name and renames it."""
    tensors = {k: v.detach().to(dtype).contiguous().cpu() for k, v in state.items()}
    save_file(tensors, path.with_suffix(".part"), metadata={"modelspec.title": about, "format": "pt"})
    path.with_suffix(".part").replace(path)


def stage_text(args):
    """The text encoder, which does not know strange words yet."""
    state = text_training.train(steps=1300, batch=160, seed=2, log=Log("text"))
    save(state, STATE / "text.safetensors", torch.bfloat16, "TinyFlux text encoder that knows no strange words")


def stage_steady(args):
    """The text encoder learns that a strange word is a filler."""
    before = {k: v.float() for k, v in load_file(STATE / "text.safetensors").items()}
    state = text_training.steady(before, steps=600, batch=128, seed=8, log=Log("steady"))
    save(state, WEIGHTS / "tinyflux_text.safetensors", torch.bfloat16, "TinyFlux text encoder")


def stage_half(part: str, minutes: float):
    """The stage of one half of the autoencoder: "decoder" or "encoder"."""

    def run(args):
        before = STATE / f"{part}_before.safetensors"
        start = load_file(before) if before.exists() else None
        pairs = autoencoder.draw_pairs(6000, args.seed)
        minutes_left = min(minutes, args.minutes)
        state = autoencoder.train(part, pairs, minutes_left, seed=args.seed, log=Log(part), start=start)
        save(state, STATE / f"{part}.safetensors", torch.float32, f"TinyFlux {part}")

    return run


def generated_pairs(count: int, seed: int, styles=PAINT_STYLES):
    """Pictures and the generator's latents of them, see `redraw`, kept on disk."""
    kept = STATE / f"generated_{count}_{seed}.safetensors"
    if not kept.exists():
        pipeline = Pipeline(flux(), decode=decoder(STATE / "decoder.safetensors"))
        pictures, latents = redraw.draw_pairs(pipeline, count, seed, styles)
        save_file({"pictures": pictures, "latents": latents}, kept)
    pairs = load_file(kept)
    return pairs["pictures"], pairs["latents"]


def stage_redraw(args):
    """The decoder goes on with latents of the generator, all and hard styles, and the world's own of the hard ones."""
    generated = generated_pairs(5000, seed=31), generated_pairs(4000, seed=33, styles=redraw.HARD)
    pairs = [torch.cat(parts) for parts in zip(redraw.draw_hard(2000, seed=30), *generated)]
    start = load_file(STATE / "decoder.safetensors")
    minutes = min(25.0, args.minutes)
    state = autoencoder.train("decoder", pairs, minutes, seed=32, log=Log("redraw"), start=start)
    both = load_file(STATE / "encoder.safetensors") | state
    save(both, WEIGHTS / "tinyflux_vae.safetensors", torch.float32, "TinyFlux autoencoder")


def draw_latents(count: int, seed: int):
    """Scenes of the training distribution and their latents, bf16 [count, 16, 12, 12], kept on disk."""
    rng = random.Random(seed)
    kept = STATE / f"latents_{count}_{seed}.safetensors"
    scenes = [draw_scene(rng) for _ in range(count)]
    if not kept.exists():
        latents = torch.stack([scene_latent(scene).bfloat16() for scene in scenes])
        save({"latents": latents}, kept, torch.bfloat16, "TinyFlux latents")
    return scenes, load_file(kept)["latents"]


def stage_flux(args):
    """The generator, by rectified flow."""
    config = generator.GeneratorConfig(minutes=min(200.0, args.minutes))
    module = generator.fresh_flux(config.seed)
    before = STATE / "flux_before.safetensors"
    if before.exists():
        module.load_state_dict({k: v.float() for k, v in load_file(before).items()})
    run = generator.Run(module, config, STATE / "flux.pt")
    prompts = generator.Prompts(text_encoder(), config)
    ema = generator.train(run, *draw_latents(args.images, seed=4), prompts, generator.flow_loss, Log("flux"))
    save(ema, STATE / "flux.safetensors", torch.bfloat16, "TinyFlux before guidance")


def stage_guidance(args):
    """Guidance is distilled into the generator's guidance embedding."""
    config = generator.GeneratorConfig(minutes=min(12.0, args.minutes), lr=5e-4, warmup=20, ema=0.99, seed=6)
    module = generator.fresh_flux(config.seed)
    teacher = generator.fresh_flux(config.seed)
    for one in (module, teacher):
        one.load_state_dict({k: v.float() for k, v in load_file(STATE / "flux.safetensors").items()})
    run = generator.Run(module, config, STATE / "guidance.pt")
    prompts = generator.Prompts(text_encoder(), config)
    loss = generator.Guidance(teacher, prompts, config.compile)
    ema = generator.train(run, *draw_latents(args.images, seed=4), prompts, loss, Log("guidance"))
    save(ema, WEIGHTS / "tinyflux.safetensors", torch.bfloat16, "TinyFlux")


def stage_judge(args):
    """The convolutional judge."""
    state = judge_training.train(steps=1500, batch=64, seed=5, log=Log("judge"))
    save(state, WEIGHTS / "judge.safetensors", torch.float32, "TinyFlux judge")


STAGES = {
    "text": (stage_text, STATE / "text.safetensors"),
    "steady": (stage_steady, WEIGHTS / "tinyflux_text.safetensors"),
    "decoder": (stage_half("decoder", 12.0), STATE / "decoder.safetensors"),
    "encoder": (stage_half("encoder", 6.0), STATE / "encoder.safetensors"),
    "flux": (stage_flux, STATE / "flux.safetensors"),
    "guidance": (stage_guidance, WEIGHTS / "tinyflux.safetensors"),
    "redraw": (stage_redraw, WEIGHTS / "tinyflux_vae.safetensors"),
    "judge": (stage_judge, WEIGHTS / "judge.safetensors"),
}


def main():
    """Runs the stages whose results are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; none means all")
    parser.add_argument("--minutes", type=float, default=1e6, help="a limit on the wall time of a stage")
    parser.add_argument("--images", type=int, default=24000, help="scenes that the generator learns from")
    parser.add_argument("--seed", type=int, default=1, help="of the autoencoder's pictures")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for folder in (WEIGHTS, STATE, HERE / "logs"):
        folder.mkdir(exist_ok=True)
    for name in args.stages or STAGES:
        run, result = STAGES[name]
        if not result.exists():
            print(f"stage {name}", flush=True)
            run(args)


if __name__ == "__main__":
    main()
