"""A judge by its name, with what it needs."""

from collections.abc import Sequence
from pathlib import Path

from ..tinyflux.prompts import kind_of
from .judges import (
    CLIP_SOURCE,
    ClipJudge,
    CnnJudge,
    NudeNetJudge,
    OracleJudge,
    TransformersClip,
    VisionClip,
    clip_files,
    nudenet_file,
)
from .recogniser import RecogniserJudge, names_of

COMFYUI, FROM_FOLDER = "CLIP of ComfyUI", ("CLIP", "recogniser")
JUDGES = ("TinyFlux oracle", "TinyFlux CNN", "NudeNet", "CLIP", COMFYUI, "recogniser")


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
    require(name, folder=folder, weights=weights)
    sure = {"threshold": threshold} if threshold else {}
    if name in ("TinyFlux oracle", "TinyFlux CNN"):
        made = (OracleJudge if name == "TinyFlux oracle" else CnnJudge)(_kind(wanted))
    elif name == "NudeNet":
        made = NudeNetJudge(**sure)
    elif name == "recogniser":
        made = RecogniserJudge(folder / weights, **sure)
    elif name == "CLIP":
        made = ClipJudge(TransformersClip(folder / weights), labels, template, **sure)
    else:
        check_links(vision is not None, clip is not None)
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


def require(name: str, *, folder: Path, weights: str = ""):
    """Looks for what a judge needs on this machine, before a picture is drawn for it.

    Raises:
        ValueError: a package or a file is missing, with where to get it, or there is no such judge.
    """
    if name not in JUDGES:
        raise ValueError(f"there is no judge {name!r}; known: {', '.join(JUDGES)}")
    if name == "NudeNet":
        nudenet_file()
    elif name == "recogniser":
        names_of(inside(folder, weights, "`weights`", "the file of a trained recogniser (Train Recogniser writes it)"))
    elif name == "CLIP":
        clip_folder(folder, weights)


def check_links(vision: bool, clip: bool):
    """Raises ValueError when "CLIP of ComfyUI" lacks one of its two inputs."""
    if not (vision and clip):
        raise ValueError("the judge `CLIP of ComfyUI` needs both inputs: connect `clip_vision` and `clip`")


def clip_folder(folder: Path, weights: str, given: str = "`weights`") -> Path:
    """The folder of a CLIP in `folder`, checked for its files; `given` is the input that names it."""
    path = inside(folder, weights, given, f"the folder of a CLIP in transformers' format, such as {CLIP_SOURCE},")
    clip_files(path)
    return path


def inside(folder: Path, name: str, given: str, what: str) -> Path:
    """A path below a folder, that exists; `given` is the input that names it.

    Raises:
        ValueError: it is not there, or not below the folder.
    """
    path = (folder / name).resolve()
    if not name.strip() or not path.is_relative_to(folder.resolve()) or not path.exists():
        raise ValueError(f"{given} must name {what} in {folder}; there is no {name!r}")
    return path
