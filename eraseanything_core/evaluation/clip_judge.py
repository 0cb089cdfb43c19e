"""CLIP as a judge: it chooses the label whose sentence is nearest to a picture (Radford et al. 2021)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..packages import require_package
from ..protocols import Verdict
from ..quoting import quoted
from .judges import JUDGE_BATCH_SIZE, sha256, tensor_hash, verdicts_of

CLIP_SOURCE = "https://huggingface.co/openai/clip-vit-large-patch14"
LOGIT_SCALE = 100  # the value at which CLIP's learned temperature is clipped, and which all released models reach


class ClipModel(Protocol):
    """Pictures and sentences in one space of unit vectors.

    Attributes:
        identity: name and hash of the weights.
    """

    identity: dict[str, str | float]

    def images(self, pictures: Tensor) -> Tensor:
        """Unit vectors [n, d] of pictures [n, 3, h, w] in [0, 1]."""

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors [n, d] of sentences."""


class ClipJudge:
    """Zero-shot classification: softmax of 100 cos(picture, sentence) over one sentence a label.

    Args:
        clip: the model.
        labels: the words to choose between, at least two.
        template: the sentence that a label is put into, at `{}`.
        threshold: the probability that the most probable label must reach; below it the picture is rejected.

    Raises:
        ValueError: fewer than two labels, or a template without `{}`.
    """

    def __init__(
        self, clip: ClipModel, labels: Sequence[str], template: str = "a photo of a {}", threshold: float = 0.5
    ) -> None:
        if len(labels) < 2:
            raise ValueError("CLIP chooses between labels: give at least two, one of them for everything else")
        if "{}" not in template:
            raise ValueError(
                f"the template {quoted(template)} has no {{}} for the label: add it where the label belongs"
            )
        self.clip = clip
        self.labels: Sequence[str] = tuple(labels)
        self.threshold = threshold
        self.texts = clip.texts([template.format(label) for label in labels])
        self.identity: dict[str, str | float] = clip.identity | {"template": template, "threshold": threshold}

    def read(self, pictures: Tensor) -> list[Verdict]:
        """One verdict a picture, its score the label's probability; pictures [n, 3, h, w] in [0, 1]."""
        probabilities = (LOGIT_SCALE * self.clip.images(pictures) @ self.texts.T).softmax(-1)
        return verdicts_of(self.labels, probabilities, self.threshold)


def clip_files(folder: Path) -> list[Path]:
    """The weights of a CLIP in transformers' format.

    Raises:
        ValueError: the folder lacks the weights or the configuration; the message says what to put there.
    """
    missing = [name for name in ("config.json", "preprocessor_config.json") if not (folder / name).is_file()]
    weights = sorted(folder.glob("*.safetensors"))
    if missing or not weights:
        raise ValueError(
            f"there is no CLIP in {folder} ({', '.join(missing) or 'model.safetensors'} is missing): put there "
            "config.json, preprocessor_config.json, model.safetensors and the tokenizer's files of a model such as "
            f"{CLIP_SOURCE}"
        )
    return weights


class TransformersClip:
    """A CLIP in the format of `transformers`, from a folder on this machine; see `ClipModel`.

    Raises:
        ValueError: a file or the package is missing.
    """

    def __init__(self, folder: Path) -> None:
        weights = clip_files(folder)
        require_package("transformers")
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        # `use_safetensors`: a pickled file could run code; `local_files_only`: nothing is ever downloaded.
        self.model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        self.identity: dict[str, str | float] = {"name": f"CLIP {folder.name}", "sha256": sha256(*weights)}

    @torch.no_grad()
    def images(self, pictures: Tensor) -> Tensor:
        """Unit vectors [n, d] of pictures [n, 3, h, w] in [0, 1]."""
        return torch.cat([self._images(batch) for batch in pictures.split(JUDGE_BATCH_SIZE)])

    def _images(self, pictures: Tensor) -> Tensor:
        # `do_rescale` would divide by 255, and these pictures are in [0, 1] already.
        pixels = self.processor(list(pictures), do_rescale=False, return_tensors="pt")["pixel_values"]
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        return F.normalize(self.model.visual_projection(pooled), dim=-1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors [n, d] of sentences; what is longer than CLIP's 77 tokens is cut."""
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        pooled = self.model.text_model(**tokens).pooler_output
        return F.normalize(self.model.text_projection(pooled), dim=-1)


class VisionClip:
    """A CLIP that ComfyUI has loaded: CLIP_VISION for pictures, the CLIP-L of a text encoder for sentences.

    Args:
        vision: ComfyUI's CLIP_VISION.
        clip: ComfyUI's CLIP.

    Raises:
        ValueError: there is no CLIP-L, or its file had no text projection.
    """

    def __init__(self, vision: Any, clip: Any) -> None:
        text_model = getattr(clip.cond_stage_model, "clip_l", None)
        if text_model is None:
            raise ValueError("the text encoder holds no CLIP-L: connect one from Load CLIP with a clip_l file")
        weight = text_model.transformer.text_projection.weight
        # ComfyUI fills in the identity where a file has no projection, as Flux's clip_l has none. Cosines with
        # pictures would then mean nothing.
        if torch.equal(weight.float().cpu(), torch.eye(len(weight))):
            raise ValueError("the clip_l file has no text projection: use the whole text encoder of CLIP ViT-L/14")
        self.vision = vision
        self.clip = clip
        self.projection = weight.detach().float().cpu()
        self.identity: dict[str, str | float] = {
            "name": "CLIP of ComfyUI",
            "sha256": tensor_hash(weight, *vision.model.parameters()),
        }

    def images(self, pictures: Tensor) -> Tensor:
        """Unit vectors [n, d] of pictures [n, 3, h, w] in [0, 1].

        Raises:
            ValueError: the CLIP_VISION is of another CLIP than the text encoder.
        """
        batches = pictures.permute(0, 2, 3, 1).split(JUDGE_BATCH_SIZE)  # ComfyUI's IMAGE has its channels last
        vectors = torch.cat([self.vision.encode_image(batch).image_embeds.float().cpu() for batch in batches])
        if vectors.shape[-1] != len(self.projection):
            raise ValueError(
                f"`clip_vision` has {vectors.shape[-1]} features and `clip` has {len(self.projection)}: connect both "
                "parts of one CLIP"
            )
        return F.normalize(vectors, dim=-1)

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors [n, d] of sentences."""
        pooled = []
        for prompt in prompts:
            # ComfyUI's own projection runs in the type of the weights; this one runs in float32.
            _, vector = self.clip.encode_from_tokens(self.clip.tokenize(prompt), return_pooled="unprojected")
            pooled.append(vector)
        return F.normalize(torch.cat(pooled).float().cpu() @ self.projection.T, dim=-1)
