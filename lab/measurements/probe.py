"""Measures AttentionProbe on TinyFlux, through the node itself and ComfyUI's sampler.

    python scripts/dev.py probe             writes benchmarks/probe.json and .md

- Sampled pictures: the mask is every pixel that differs from the flat background by more than the oracle's
  threshold, so it holds the object with its halo or shadow. The map is the one that the node gives, at the picture's
  size.
- Two objects: exact masks. A rendered scene of two entities is noised to sigma 0.6 and given to the model once, with
  its caption; the map of each entity is held against its own silhouette.
- Cost: CPU time of samplings with and without the probe, in turns, in one run; and the probe's memory in one forward
  of Flux's 19 dual blocks at 1024 x 1024 with 512 text tokens, in a process of its own.

What was sampled is kept in .cache/probe, so a run that was stopped goes on.
"""

# ruff: noqa: E402 (ComfyUI has to be set up before anything else is imported)

import argparse
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, os.environ["COMFYUI_PATH"])  # before the pack's folder of the name `nodes`
sys.argv, ARGUMENTS = sys.argv[:1], sys.argv[1:]  # ComfyUI reads them too
from comfy.cli_args import args as comfyui

comfyui.cpu = True
comfyui.base_directory = os.environ["COMFYUI_BASE"]

import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eraseanything_core.attention import heat_maps
from eraseanything_core.attention.probe import Probe
from eraseanything_core.evaluation.localisation import auc, pointing
from eraseanything_core.evaluation.metrics import rate
from eraseanything_core.tinyflux import GUIDANCE, STEPS, oracle
from eraseanything_core.tinyflux.concepts import CONCEPTS
from eraseanything_core.tinyflux.world import BACKGROUNDS, PICTURE_SIZE
from lab.provenance import BENCHMARKS, commit, digest, write_report
from lab.tinyflux.captions import caption
from lab.tinyflux.latents import scene_latent
from lab.tinyflux.pipeline import WEIGHTS, decoder, noise
from lab.tinyflux.prompts import prompt_with
from lab.tinyflux.scenes import object_mask, related

SIGMA = 0.6  # of the scenes of two objects
TRUE_SIZE = {"heads": 24, "text": 512, "grid": (64, 64), "width": 128, "blocks": 19}


def load_pack() -> dict:
    """The pack's nodes, imported as ComfyUI does it."""
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
    return {node.GET_SCHEMA().node_id.removeprefix("EraseAnything_"): node for node in module.NODES}


class ProbeBenchmark:
    """TinyFlux as the stock loaders give it, and the pack's nodes with their defaults."""

    def __init__(self):
        self.nodes = load_pack()
        self.model = comfy.sd.load_diffusion_model(str(WEIGHTS / "tinyflux.safetensors"))
        self.clip = self.run("TinyFlux", text_encoder="tinyflux_text.safetensors")[0]
        self.decode = decoder()

    def run(self, name: str, **values) -> tuple:
        node = self.nodes[name]
        defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
        return node.PREPARE_CLASS_CLONE(None).execute(**defaults | values).args

    def probe(self, model, prompt: str, concept: str, **values) -> tuple:
        """(model, conditioning, recorder) of AttentionProbe."""
        return self.run("AttentionProbe", model=model, clip=self.clip, prompt=prompt, concept=concept, **values)[:3]

    def sample(self, model, conditioning: list, start: Tensor, latent: Tensor, sigmas: Tensor) -> Tensor:
        """ComfyUI's own Euler sampling of a conditioning."""
        guided = [[context, more | {"guidance": GUIDANCE}] for context, more in conditioning]
        euler = comfy.samplers.sampler_object("euler")
        return comfy.sample.sample_custom(
            model, start, 1.0, euler, sigmas, guided, guided, latent, disable_pbar=True, seed=0
        )

    def schedule(self) -> Tensor:
        """The sigmas of the sampler."""
        return comfy.samplers.calculate_sigmas(self.model.get_model_object("model_sampling"), "simple", STEPS)

    def pictures(self, latents: Tensor) -> Tensor:
        """[n, 3, 96, 96] of what a sampler returns."""
        return self.decode(self.model.model.process_latent_in(latents)).float().clamp(0, 1)


def object_of(picture: Tensor) -> Tensor:
    """[96, 96] bool: what differs from the flat background."""
    background = torch.tensor(BACKGROUNDS[oracle.background_of(picture)])[:, None, None]
    return (picture - background).abs().amax(0) > oracle.SEEN


def sampled(bench: ProbeBenchmark, prompts: int, seeds: int, folder: Path) -> list[tuple]:
    """(mask, {view and label: [96, 96]}) of pictures of one entity; prompts that the folder holds are read from it."""
    rng = random.Random(11)
    pairs = []
    for number in range(prompts):
        concept = CONCEPTS["entity"][number % len(CONCEPTS["entity"])]
        prompt = prompt_with(rng, concept)
        start = noise([3_000_000 + 100 * number + i for i in range(seeds)])
        path = folder / f"{digest(bench.model.model.diffusion_model, bench.decode, prompt, start)}.safetensors"
        if not path.exists():
            save_file(recorded(bench, prompt, concept, start), path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
            print(f"sampled {seeds * (number + 1)} of {prompts * seeds}", flush=True)
        maps = load_file(path)
        for i, mask in enumerate(maps.pop("mask")):
            pairs.append(
                (mask.bool(), {label: heat_maps.resized(m[i], PICTURE_SIZE, PICTURE_SIZE) for label, m in maps.items()})
            )
    return [(mask, maps) for mask, maps in pairs if 0 < mask.float().mean() < 0.95]


def recorded(bench: ProbeBenchmark, prompt: str, concept: str, start: Tensor) -> dict[str, Tensor]:
    """ "mask" [n, 96, 96] and {view and label: [n, 6, 6]}: the dual blocks are recorded, and then the single ones."""
    model, conditioning, dual = bench.probe(bench.model, prompt, concept)
    model, _, single = bench.probe(model, prompt, concept, blocks="single")
    latents = bench.sample(model, conditioning, start, torch.zeros_like(start), bench.schedule())
    maps = {"default": dual.recording(latents).grids()["all"]}
    for view in ("block", "step", "head"):
        maps |= dual.recording(latents).grids(view)
    maps |= single.recording(latents).grids("block") | {"all single": single.recording(latents).grids()["all"]}
    masks = torch.stack([object_of(picture) for picture in bench.pictures(latents)])
    return {label: m[:, 0].contiguous() for label, m in maps.items()} | {"mask": masks.to(torch.uint8)}


def two_objects(bench: ProbeBenchmark, scenes: int) -> list[tuple]:
    """(mask, {label: [96, 96]}) of both entities of rendered scenes."""
    rng = random.Random(12)
    pairs = []
    while len(pairs) < 2 * scenes:
        scene = related(rng)
        prompt = caption(rng, scene, synonyms=0.0, generic=0.0)
        names = [o.entity for o in scene.objects[:2]]
        model, conditioning, recorder = bench.probe(bench.model, prompt, ", ".join(names))
        latent = bench.model.model.process_latent_out(scene_latent(scene)[None])
        start = noise([4_000_000 + len(pairs)])
        seen = bench.sample(model, conditioning, start, latent, torch.tensor([SIGMA, 0.0]))
        maps = recorder.recording(seen).grids()["all"]
        for i, name in enumerate(names):
            full = {"default": heat_maps.resized(maps[0, i], PICTURE_SIZE, PICTURE_SIZE)}
            pairs.append((object_mask(scene, name) > 0.5, full))
    return pairs


def scores(pairs: list[tuple]) -> dict:
    """{label: {"auc", "low", "high", "pointing_game", "n"}}; the interval is of the mean AUC, normal."""
    masks = torch.stack([mask for mask, _ in pairs])
    table = {}
    for label in pairs[0][1]:
        maps = torch.stack([one[label] for _, one in pairs])
        values = auc(maps, masks)
        hits = pointing(maps, masks).tolist()
        mean = float(values.mean())
        reach = 1.96 * float(values.std()) / len(values) ** 0.5
        table[label] = {
            "auc": round(mean, 4), "low": round(mean - reach, 4), "high": round(mean + reach, 4),
            "pointing_game": rate(hits), "n": len(pairs),
        }  # fmt: skip
    return table


def overhead(bench: ProbeBenchmark, rounds: int) -> dict:
    """CPU time of a sampling with the probe over one without, in turns; and whether the latents are equal."""
    prompt = "a drawing of a red star on a white background"
    probed, conditioning, _ = bench.probe(bench.model, prompt, "star")
    start = noise([1])
    seconds = {"without": [], "with": []}
    latents = {}
    for _ in range(rounds + 1):
        for name, model in (("without", bench.model), ("with", probed)):
            begun = time.process_time()
            latents[name] = bench.sample(model, conditioning, start, torch.zeros_like(start), bench.schedule())
            seconds[name].append(time.process_time() - begun)
    times = {name: median(values[1:]) for name, values in seconds.items()}  # the first round warms up
    return {
        "overhead_ratio": round(times["with"] / times["without"], 4),
        "seconds": {name: round(value, 4) for name, value in times.items()},
        "rounds": rounds,
        "bit_identical": torch.equal(latents["with"], latents["without"]),
    }


def peak_mb() -> float:
    """What a forward's 19 dual blocks add to this process's own memory at its highest, MB (10^6 bytes).

    Pages of files are left out, as how many of the libraries' are mapped depends on what else the machine does.
    """
    rows, columns = TRUE_SIZE["grid"]
    q, k = (torch.randn(1, TRUE_SIZE["heads"], TRUE_SIZE["text"] + rows * columns, TRUE_SIZE["width"]) for _ in "qk")
    before = resident()["RssAnon"]
    read_blocks(q, k, 1)  # maps the libraries' pages
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of what came before
    read_blocks(q, k, TRUE_SIZE["blocks"])
    now = resident()
    return 1024 * (now["VmHWM"] - now["RssFile"] - now["RssShmem"] - before) / 1e6


def read_blocks(q: Tensor, k: Tensor, blocks: int):
    """A forward of so many dual blocks, read by a probe."""
    probe = Probe(["▁word"] * 40 + [""] * (TRUE_SIZE["text"] - 40), {"concept": [3, 4]})
    probe.begin(0, 1.0, TRUE_SIZE["grid"], TRUE_SIZE["text"], None)
    for block in range(blocks):
        probe.read(q, k, ("double", block))
    probe.end()
    probe.finish(torch.zeros(1))


def resident() -> dict[str, int]:
    """This process's memory by kind, KiB, and its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name.rstrip(":"): int(size) for name, size, _ in (line.split() for line in lines if line.endswith(" kB"))}


def memory() -> dict:
    """`peak_mb` in a process of its own, beside what the full matrices would take in fp32."""
    result = subprocess.run(
        [sys.executable, "-m", "lab.measurements.probe", "--memory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows, columns = TRUE_SIZE["grid"]
    tokens = TRUE_SIZE["text"] + rows * columns
    full = 4 * TRUE_SIZE["blocks"] * TRUE_SIZE["heads"] * tokens**2 / 1e6
    return {"peak_mb_true_size": round(float(result.stdout.split()[-1]), 1), "full_matrices_mb": round(full)}


def kept(path: Path, measure) -> dict:
    """What was measured, from the file if it is there."""
    if not path.exists():
        path.with_suffix(".part").write_text(json.dumps(measure()), encoding="utf-8")
        path.with_suffix(".part").replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def numbered(label: str) -> list:
    """A key that sorts "step 10" behind "step 9"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", label)]


def markdown(report: dict) -> str:
    """The report for people."""
    n = report["n"]
    two = report["two_objects"]["default"]
    lines = [
        "# AttentionProbe on TinyFlux",
        "",
        f"AUC of the map's pixels against the object's mask, and how often the map's highest pixel lies in it, on {n} "
        "sampled pictures of one entity; 95 % intervals. The default records the dual blocks, all steps and heads; "
        "rows of steps and heads are of the dual blocks.",
        "",
        "| map | AUC | pointing game |",
        "| --- | ---: | ---: |",
    ]
    for label, cell in sorted(report["maps"].items(), key=lambda item: numbered(item[0])):
        pointing_share = f"{cell['pointing_game']['value']:.1%}"
        lines.append(f"| {label} | {cell['auc']:.3f} ({cell['low']:.3f} to {cell['high']:.3f}) | {pointing_share} |")
    lines += [
        "",
        f"Scenes of two objects, exact masks, each entity against its own silhouette, default blocks at sigma {SIGMA}: "
        f"AUC {two['auc']:.3f} ({two['low']:.3f} to {two['high']:.3f}), pointing game "
        f"{two['pointing_game']['value']:.1%}, {two['n']} maps.",
        "",
        f"CPU time of a sampling with the probe over one without: {report['overhead_ratio']:.3f} (median of "
        f"{report['rounds']} each, in turns, one picture, one thread); the latents are "
        f"{'bit-identical' if report['bit_identical'] else 'NOT identical'}.",
        "",
        f"Memory at Flux's true size (19 dual blocks, 24 heads, 4,096 image and 512 text tokens, fp32): "
        f"{report['peak_mb_true_size']:.0f} MB; the full matrices would take {report['full_matrices_mb']:,} MB.",
        "",
        f"`{report['command']}` at {report['commit']}.",
        "",
    ]
    return "\n".join(lines)


def main():
    """Measures maps, cost and memory, and writes the report."""
    parser = argparse.ArgumentParser(prog="dev.py probe", description=__doc__)
    parser.add_argument("--prompts", type=int, default=20, help="prompts, sixteen pictures each")
    parser.add_argument("--scenes", type=int, default=100, help="rendered scenes of two objects")
    parser.add_argument("--rounds", type=int, default=15, help="samplings with and without the probe")
    parser.add_argument("--memory", action="store_true", help="only print the memory at true size, MB")
    args = parser.parse_args(ARGUMENTS)
    torch.set_num_threads(1)
    if args.memory:
        print(peak_mb())
        return
    folder = ROOT / ".cache" / "probe"
    folder.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode():
        bench = ProbeBenchmark()
        source = (ROOT / "eraseanything_core/attention/probe.py").read_text()
        weights = bench.model.model.diffusion_model
        stored = kept(folder / f"{digest(source, 'memory')}.json", memory)
        cost = stored | kept(
            folder / f"{digest(source, weights, 'overhead', args.rounds)}.json", lambda: overhead(bench, args.rounds)
        )
        name = f"{digest(source, weights, 'two objects', args.scenes)}.json"
        pairs = kept(folder / name, lambda: scores(two_objects(bench, args.scenes)))
        print(cost, pairs, flush=True)
        maps = scores(sampled(bench, args.prompts, 16, folder))
    report = {
        "auc_default": maps["default"]["auc"],
        "auc_best": max(cell["auc"] for cell in maps.values()),
        "pointing_game": maps["default"]["pointing_game"]["value"],
        "n": maps["default"]["n"],
        **cost,
        "maps": maps,
        "two_objects": pairs,
        "command": "python scripts/dev.py probe",
        "commit": commit(),
    }
    write_report(BENCHMARKS / "probe", report, markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
