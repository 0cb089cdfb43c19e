"""A plug-in for the harness `eval-unlearn` (PyPI, MIT): our erasers as techniques, TinyFlux's judge as a metric.

The harness finds these classes by the entry points in `lab/pyproject.toml`: `pip install --no-deps . ./lab`, then

    eval-unlearn techniques: eraseanything, eraseanything_tinyflux    metrics: tinyflux_erasure

TinyFlux needs ComfyUI on the path; the technique for Flux.1 needs diffusers and nothing of ComfyUI.
"""

from pathlib import Path

import torch
from eval_unlearn.types import Dataset, MetricResult
from PIL import Image


class FluxTechnique:
    """A Flux.1 pipeline of diffusers with an eraser loaded.

    Args:
        model: a folder with a FluxPipeline; nothing is downloaded.
        lora: a file of this pack; "" is the un-erased model.
        strength: of the LoRA.
        erase_concept: for the harness's report.
        steps, guidance, size: of the sampler; size in px.
        device, dtype: where and in what precision it runs.
    """

    def __init__(
        self,
        model: str,
        lora: str = "",
        strength: float = 1.0,
        erase_concept: str = "",
        steps: int = 28,
        guidance: float = 3.5,
        size: int = 512,
        device: str = "cpu",
        dtype: str = "bfloat16",
    ):
        from diffusers import FluxPipeline

        self.pipe = FluxPipeline.from_pretrained(model, torch_dtype=getattr(torch, dtype), local_files_only=True)
        if lora:
            path = Path(lora)
            self.pipe.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name="eraser")
            self.pipe.set_adapters("eraser", strength)
        self.pipe.to(device)
        self.erase_concept = erase_concept
        self.drawn = 0
        self.sampler = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}

    def generate(self, prompts: list[str], seed: int | None = None, **kwargs) -> list[Image.Image]:
        """One picture a prompt; the n-th one of a run is drawn with seed + n."""
        seeds = range(self.drawn + (seed or 0), self.drawn + (seed or 0) + len(prompts))
        self.drawn += len(prompts)
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return self.pipe(prompt=prompts, generator=generators, **self.sampler | kwargs).images


class TinyFluxTechnique:
    """TinyFlux with an eraser merged; lora "" is the un-erased model."""

    def __init__(self, lora: str = "", strength: float = 1.0, erase_concept: str = ""):
        from eraseanything_core.lora.files import load_lora
        from lab.tinyflux.measure import merged
        from lab.tinyflux.pipeline import Pipeline, flux

        module = merged(flux(), load_lora(Path(lora))[0], strength) if lora else flux()
        self.pipeline = Pipeline(module)
        self.erase_concept = erase_concept
        self.drawn = 0

    def generate(self, prompts: list[str], seed: int | None = None, **_) -> list[Image.Image]:
        """One picture a prompt, 96 px; the n-th one of a run is drawn with seed + n."""
        first = self.drawn + (seed or 0)
        self.drawn += len(prompts)
        pictures = self.pipeline.pictures(prompts, list(range(first, first + len(prompts))))
        return [Image.fromarray((p * 255).round().byte().permute(1, 2, 0).numpy()) for p in pictures]


class TinyFluxErasure:
    """Acc_e, Acc_ir and Acc_g of a concept of TinyFlux by its CNN judge; the value is H_o, 1 is perfect.

    Args:
        concept: what was erased.
        count: pictures a cell.
    """

    def __init__(self, concept: str, count: int = 50):
        from lab.tinyflux.recipe import cells

        self.cells = {name: cell for name, cell in cells(concept, count).items() if name != "unrelated"}
        self.hits: dict[str, list[bool]] = {name: [] for name in self.cells}

    def load_dataset(self) -> list[Dataset]:
        """One batch a cell."""
        return [Dataset(cell.prompts, {"source": "TinyFlux", "cell": name}) for name, cell in self.cells.items()]

    def update(self, images: list[Image.Image], prompts: list[str], metadata: dict):
        """Reads a batch of `load_dataset`."""
        from eraseanything_core.tinyflux.judge import load, read

        name = metadata["cell"]
        cell = self.cells[name]
        pictures = torch.stack([_pixels(image) for image in images])
        for reading, concept in zip(read(load(), pictures, cell.kinds[0]), cell.concepts, strict=True):
            self.hits[name].append(getattr(reading, cell.kinds[0]) == concept)

    def compute(self) -> MetricResult:
        """H_o, with the three rates as details."""
        from eraseanything_core.evaluation.metrics import h_o, rate

        rates = {name: rate(hits) for name, hits in self.hits.items()}
        value = float(h_o(**{name: cell["value"] for name, cell in rates.items()}))
        return MetricResult("tinyflux_erasure", value, rates)


def _pixels(image: Image.Image) -> torch.Tensor:
    """[3, h, w] in [0, 1]."""
    raw = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return raw.view(image.height, image.width, 3).permute(2, 0, 1).float() / 255
