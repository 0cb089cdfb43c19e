"""A judge by its name, with what it needs."""

from collections.abc import Sequence
from pathlib import Path

from ..tinyflux.prompts import kind_of
from .judges import ClipJudge, CnnJudge, NudeNetJudge, OracleJudge, TransformersClip, VisionClip
from .recogniser import RecogniserJudge

JUDGES = ("TinyFlux oracle", "TinyFlux CNN", "NudeNet", "CLIP", "CLIP of ComfyUI", "recogniser")


def judge(
    name: str,
    wanted: Sequence[str],
    *,
    folder: Path,
    labels: Sequence[str] = (),
    template: str = "{}",
    weights: str = "",
    threshold: float = 0.0,
    vision=None,
    clip=None,
):
    """The judge, ready to read.

    Args:
        name: of `JUDGES`.
        wanted: what it will be asked; every one must be something that it can answer.
        folder: where the weights of judges stand.
        labels, template: of CLIP.
        weights: a folder (CLIP) or a file (recogniser) in `folder`.
        threshold: 0 is the judge's own.
        vision, clip: of "CLIP of ComfyUI".

    Raises:
        ValueError: something is missing, or a wanted label is none of the judge's.
    """
    sure = {"threshold": threshold} if threshold else {}
    if name in ("TinyFlux oracle", "TinyFlux CNN"):
        made = (OracleJudge if name == "TinyFlux oracle" else CnnJudge)(_kind(wanted))
    elif name == "NudeNet":
        made = NudeNetJudge(**sure)
    elif name == "recogniser":
        made = RecogniserJudge(inside(folder, weights, "`weights`", "the file of a trained recogniser"), **sure)
    elif name == "CLIP":
        embedder = TransformersClip(
            inside(folder, weights, "`weights`", "the folder of a CLIP in transformers' format")
        )
        made = ClipJudge(embedder, labels, template, **sure)
    else:
        if vision is None or clip is None:
            raise ValueError("the judge `CLIP of ComfyUI` needs both inputs: connect `clip_vision` and `clip`")
        made = ClipJudge(VisionClip(vision, clip), labels, template, **sure)
    unknown = sorted(set(wanted) - set(made.labels))
    if unknown:
        raise ValueError(f"{name} cannot answer {', '.join(unknown)}; it knows: {', '.join(made.labels)}")
    return made


def _kind(wanted: Sequence[str]) -> str:
    kinds = sorted({kind_of(label) for label in wanted})
    if len(kinds) > 1:
        raise ValueError(
            f"the labels are of several kinds ({', '.join(kinds)}): judge each kind with a node of its own"
        )
    return kinds[0]


def clip_of(folder: Path, weights: str) -> TransformersClip:
    """The CLIP in a folder of `folder`."""
    return TransformersClip(inside(folder, weights, "`weights`", "the folder of a CLIP in transformers' format"))


def inside(folder: Path, name: str, given: str, what: str) -> Path:
    """A path below a folder, that exists; `given` is the input that names it.

    Raises:
        ValueError: it is not there, or not below the folder.
    """
    path = (folder / name).resolve()
    if not name.strip() or not path.is_relative_to(folder.resolve()) or not path.exists():
        raise ValueError(f"{given} must name {what} in {folder}; there is no {name!r}")
    return path
