"""Whether an eraser survives the way it is used, on TinyFlux: `python scripts/dev.py survival`.

Erasers x formats of the base x ways of applying them. ComfyUI takes one step of sampling from pictures of the concept
with noise on them, with the eraser and without. The change of the velocity is held against the one that is meant, which
the same base gives with the eraser added to the outputs of its linears. `kept` is its share along the meant one, and
`noise` the size of the difference, in sizes of the meant one. Inputs of linears are not rounded, so weights alone are
compared. At full strength pictures are drawn as well, and `acc_e` is the share that still shows the concept. Writes
benchmarks/survival.json and .md.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors.torch import load_file
from torch import Tensor

from eraseanything_core.comfy_bridge.lora_files import eraser_for
from eraseanything_core.comfy_bridge.unbaked import with_whole_lora
from eraseanything_core.concepts.sampler import ConceptRequest, sample_offline
from eraseanything_core.erasers.erase_now import ClosedFormConfig
from eraseanything_core.lora.apply import LoraScale, lora_applied
from eraseanything_core.sampling import shifted_sigmas
from eraseanything_core.tinyflux import GUIDANCE, MU, STEPS, judge
from eraseanything_core.training.presets import run_config
from lab.gpu.formats import quantised
from lab.gpu.small_model import load
from lab.measurements.without_training import closed_form
from lab.provenance import BENCHMARKS, command_line, commit, write_report
from lab.tinyflux.erase import train_eraser
from lab.tinyflux.pipeline import WEIGHTS, Pipeline, flux, judge_net, noise
from lab.tinyflux.recipe import cells as cells_of

CONCEPT = "star"
PROMPTS = ("a photo of a star", "a red star on a table", "two stars and a tree", "a star in the snow")
TIMES = (1.0, 0.7, 0.4)
PICTURES = 24  # a way, of prompts in held-out templates
STRENGTHS = (1.0, 0.25, 0.05)
SEED = 5
KEPT = 0.9  # the least that a way may keep
ROWS = {"per_channel": True}

ABOUT = f"""*{CONCEPT}* on TinyFlux, {{n}} velocities a cell: {len(PROMPTS)} prompts at {len(TIMES)} times. A cell is
the share of the meant change of the velocity that is left, and behind it how large the difference to the meant one is,
in sizes of it. Inputs of linears are not rounded here. At strength 1 the third figure is `acc_e`: the share of
{PICTURES} pictures of the concept that still show it, read by the CNN.

- Where weights would keep less than {KEPT:.0%}, or add noise of the change's own size, the pack's nodes add the eraser
  to each weight as it is used. The weights decide, so a velocity may be closer than that without it.
- Files of the trainer name q, k and v as diffusers does. *Load LoRA (Bypass)* takes no name that is a part of a fused
  linear, and says so in ComfyUI's log alone.
- GGUF is not measured: ComfyUI-GGUF adds LoRAs to unpacked weights itself.
"""

Lora = dict[str, Tensor]
State = dict[str, Tensor]

FORMATS: dict[str, Callable[[State], Any]] = {
    "bf16": lambda state: load(state),
    "fp8 e4m3": lambda state: load(state, dtype=torch.float8_e4m3fn),
    "fp8 scaled": lambda state: load(quantised(state, "float8_e4m3fn", {})[0]),
    "int8 rows": lambda state: load(quantised(state, "int8_tensorwise", ROWS)[0]),
    "int8 convrot": lambda state: load(quantised(state, "int8_tensorwise", {**ROWS, "convrot": True})[0]),
    "MXFP8": lambda state: load(quantised(state, "mxfp8", {})[0]),
    "NVFP4": lambda state: load(quantised(state, "nvfp4", {})[0]),
}


def stock(patcher: Any, tensors: Lora, scale: float) -> Any:
    """Load LoRA."""
    return comfy.sd.load_lora_for_models(patcher, None, tensors, scale, 0.0)[0]


def bypass(patcher: Any, tensors: Lora, scale: float) -> Any:
    """Load LoRA (Bypass)."""
    return comfy.sd.load_bypass_lora_for_models(patcher, None, tensors, scale, 0.0)[0]


def ours(patcher: Any, tensors: Lora, scale: float) -> Any:
    """The pack's nodes."""
    return with_whole_lora(patcher, eraser_for(patcher, tensors, {}, "the eraser"), scale)[0]


WAYS = {"Load LoRA": stock, "Load LoRA (Bypass)": bypass, "our nodes": ours}


class Points(NamedTuple):
    """What is sampled from.

    Attributes:
        context: [n, tokens, features] of the prompts.
        pooled: [n, features].
        latents: [n, 16, 12, 12] of the un-erased model's pictures.
    """

    context: Tensor
    pooled: Tensor
    latents: Tensor


def points(pipeline: Pipeline) -> Points:
    """Prompts of the concept, and their pictures."""
    context, pooled = pipeline.encode(list(PROMPTS))
    return Points(context, pooled, pipeline.latents(list(PROMPTS), list(range(len(PROMPTS))), GUIDANCE))


def velocities(patcher: Any, given: Points) -> Tensor:
    """v = (x_t - x_0) / t of every prompt at every time, by one step of ComfyUI's sampler."""
    found = []
    for i in range(len(PROMPTS)):
        entries = {"pooled_output": given.pooled[i : i + 1], "guidance": GUIDANCE}
        positive = [[given.context[i : i + 1], entries]]
        for t in TIMES:
            start, n = given.latents[i : i + 1], noise([SEED + i])
            with torch.inference_mode():
                shown = patcher.model.process_latent_out(start)
                x_0 = comfy.sample.sample_custom(
                    patcher, n, 1.0, comfy.samplers.ksampler("euler"), torch.tensor([t, 0.0]), positive, positive,
                    shown, disable_pbar=True, seed=0,
                )  # fmt: skip
                x_t = (1 - t) * start + t * n
                found.append((x_t - patcher.model.process_latent_in(x_0)) / t)
    return torch.cat(found)


def keep_inputs(patcher: Any) -> None:
    """Makes quantised linears multiply their inputs as they are, with the unpacked weight."""
    for module in patcher.model.diffusion_model.modules():
        if isinstance(getattr(module, "weight", None), QuantizedTensor):
            module.comfy_force_cast_weights = True
            module._forward = lambda x, w, b: torch.nn.functional.linear(x, getattr(w, "dequantize", lambda: w)(), b)


def shown(patcher: Any, pipeline: Pipeline, net: judge.JudgeNet) -> float:
    """The share of pictures by ComfyUI's sampler that show the concept they ask for."""
    cell = cells_of(CONCEPT, PICTURES)["acc_e"]
    drawn = []
    for prompt, seed in zip(cell.prompts, cell.seeds, strict=True):
        context, pooled = pipeline.encode([prompt])
        positive = [[context, {"pooled_output": pooled, "guidance": GUIDANCE}]]
        with torch.inference_mode():
            latents = comfy.sample.sample_custom(
                patcher, noise([seed]), 1.0, comfy.samplers.ksampler("euler"), shifted_sigmas(STEPS, MU), positive,
                positive, torch.zeros(1, 16, 12, 12), disable_pbar=True, seed=0,
            )  # fmt: skip
            drawn.append(pipeline.decode(patcher.model.process_latent_in(latents)).clamp(0, 1))
    return sum(reading.entity == CONCEPT for reading in judge.read(net, torch.cat(drawn), "entity")) / PICTURES


def survival(patcher: Any, tensors: Lora, scale: float, given: Points) -> dict[str, dict[str, float]]:
    """`kept` and `noise` of each way on one base."""
    keep_inputs(patcher)
    base = velocities(patcher, given)
    eraser = eraser_for(patcher, tensors, {}, "the eraser")
    with lora_applied(patcher.model.diffusion_model, eraser, LoraScale(scale)):
        meant = velocities(patcher, given) - base
    cells = {}
    for way, apply in WAYS.items():
        real = velocities(apply(patcher, tensors, scale), given) - base
        cells[way] = {
            "kept": round(float((real * meant).sum() / meant.square().sum()), 4),
            "noise": round(float((real - meant).norm() / meant.norm()), 4),
        }
    return cells


def erased_now(pipeline: Pipeline) -> Lora:
    """Erase Now's with the word typed."""
    words = sample_offline(ConceptRequest(CONCEPT))
    return closed_form(pipeline, ClosedFormConfig.of(words, "UCE", 0, 0))


def trained(pipeline: Pipeline) -> Lora:
    """A training with the preset quick and the word typed."""
    words = sample_offline(ConceptRequest(CONCEPT)).settings()
    return train_eraser(pipeline, run_config(words, "quick", {"width": 96, "height": 96})).lora


def erasers(pipeline: Pipeline) -> dict[str, Lora]:
    """By name."""
    return {"Erase Now": erased_now(pipeline), "Erase Trainer, quick": trained(pipeline)}


def board(formats: list[str], lora_of: Callable[[Pipeline], dict[str, Lora]] = erasers) -> list[dict[str, Any]]:
    """A row for each eraser, strength and format."""
    pipeline, net = Pipeline(flux(dtype=torch.float32)), judge_net()
    given = points(pipeline)
    state = {name: tensor.bfloat16() for name, tensor in load_file(WEIGHTS / "tinyflux.safetensors").items()}
    rows = []
    for name, tensors in lora_of(pipeline).items():
        for form in formats:
            patcher = FORMATS[form](state)
            for strength in STRENGTHS:
                cells = survival(patcher, tensors, strength, given)
                if strength == 1:
                    for way, apply in WAYS.items():
                        cells[way]["acc_e"] = shown(apply(patcher, tensors, strength), pipeline, net)
                rows.append({"eraser": name, "base": form, "strength": strength, "ways": cells})
                print(rows[-1], flush=True)
    return rows


def told(cell: dict[str, float]) -> str:
    """What is kept, the noise, and the concept's share of pictures where some were drawn."""
    text = f"{cell['kept']:.0%}, {cell['noise']:.2f}"
    return f"{text}, {cell['acc_e']:.0%}" if "acc_e" in cell else text


def markdown(report: dict[str, Any]) -> str:
    """The table for people."""
    lines = ["# Does an eraser survive the way it is used?", "", ABOUT.format(n=report["n"])]
    lines += [f"| eraser | strength | base | {' | '.join(WAYS)} |", "| --- | ---: | --- |" + " ---: |" * len(WAYS)]
    for row in report["rows"]:
        cells = [told(cell) for cell in row["ways"].values()]
        lines.append(f"| {row['eraser']} | {row['strength']:g} | {row['base']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"`{report['command']}` at {report['commit']}.", ""])


def main() -> None:
    """Measures the board and writes both files."""
    parser = argparse.ArgumentParser(prog="dev.py survival", description=__doc__)
    parser.parse_args()
    torch.set_num_threads(1)
    rows = board(list(FORMATS))
    report = {"command": command_line("survival"), "commit": commit(), "n": len(PROMPTS) * len(TIMES)}
    report["rows"] = rows
    write_report(BENCHMARKS / "survival", report, markdown(report))


if __name__ == "__main__":
    main()
