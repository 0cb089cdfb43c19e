"""A judge by its name, with what it needs on this machine.

`JUDGES` holds the judges that read any picture. A caller that knows more of them passes a larger table, as the nodes
do with those of TinyFlux where it is installed.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..protocols import Judge
from ..quoting import escaped, quoted
from .clip_judge import CLIP_SOURCE, ClipJudge, TransformersClip, VisionClip, clip_files
from .nudenet_judge import NudeNetJudge, nudenet_file
from .recogniser import RecogniserJudge, names_of

COMFYUI_CLIP = "CLIP of ComfyUI"


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is built from; each takes the parts that it needs.

    Attributes:
        wanted: the labels that it will be asked for; it must know every one.
        folder: where the weights of judges are.
        labels, template: of a CLIP.
        weights: a folder (CLIP) or a file (recogniser) in `folder`.
        threshold: how sure the judge must be; 0 is the judge's own default.
        vision, clip: ComfyUI's CLIP_VISION and CLIP, for `COMFYUI_CLIP`.
    """

    wanted: Sequence[str]
    folder: Path
    labels: Sequence[str] = ()
    template: str = "{}"
    weights: str = ""
    threshold: float = 0.0
    vision: Any = None
    clip: Any = None

    def options(self) -> dict[str, float]:
        """The threshold as a keyword, left out where the judge shall take its default."""
        return {"threshold": self.threshold} if self.threshold else {}


@dataclass(frozen=True)
class JudgeEntry:
    """A judge of the table.

    Attributes:
        build: loads it.
        check: raises ValueError when the folder, or `weights` in it, lacks something; it loads nothing.
        needs_weights: it reads the file or folder that the user names in `weights`.
    """

    build: Callable[[JudgeRequest], Judge]
    check: Callable[[Path, str], object]
    needs_weights: bool = False


def _build_comfyui_clip(request: JudgeRequest) -> Judge:
    check_links(request.vision is not None, request.clip is not None)
    clip = VisionClip(request.vision, request.clip)
    return ClipJudge(clip, request.labels, request.template, **request.options())


def _build_transformers_clip(request: JudgeRequest) -> Judge:
    clip = TransformersClip(request.folder / request.weights)
    return ClipJudge(clip, request.labels, request.template, **request.options())


def _check_recogniser(folder: Path, weights: str) -> None:
    description = "the file of a trained recogniser (Train Recogniser writes it)"
    names_of(inside(folder, weights, "`weights`", description))


JUDGES: Mapping[str, JudgeEntry] = {
    "NudeNet": JudgeEntry(
        build=lambda request: NudeNetJudge(**request.options()),
        check=lambda folder, weights: nudenet_file(),
    ),
    "CLIP": JudgeEntry(
        build=_build_transformers_clip,
        check=lambda folder, weights: clip_folder(folder, weights),
        needs_weights=True,
    ),
    COMFYUI_CLIP: JudgeEntry(
        build=_build_comfyui_clip,
        check=lambda folder, weights: None,  # its links are looked at when it is built; see `check_links`
    ),
    "recogniser": JudgeEntry(
        build=lambda request: RecogniserJudge(request.folder / request.weights, **request.options()),
        check=_check_recogniser,
        needs_weights=True,
    ),
}


def build_judge(name: str, request: JudgeRequest, judges: Mapping[str, JudgeEntry] = JUDGES) -> Judge:
    """The judge, ready to read.

    Args:
        name: a key of `judges`.
        request: what it is built from.
        judges: the table of known judges.

    Raises:
        ValueError: something is missing, or a wanted label is none of the judge's.
    """
    require_judge(name, request.folder, request.weights, judges)
    # A label that the judge does not know would count as "not shown" in every picture, which looks like an erasure.
    judge = judges[name].build(request)
    unknown = sorted(set(request.wanted) - set(judge.labels))
    if unknown:
        wanted = escaped(", ".join(unknown))
        raise ValueError(f"{name} cannot answer {wanted}; it knows: {escaped(', '.join(judge.labels))}")
    return judge


def require_judge(name: str, folder: Path, weights: str = "", judges: Mapping[str, JudgeEntry] = JUDGES) -> None:
    """Checks what a judge needs on this machine, before a picture is drawn for it.

    Raises:
        ValueError: a package or a file is missing, with where to get it, or there is no such judge.
    """
    if name not in judges:
        raise ValueError(f"there is no judge {quoted(name)}; known: {', '.join(judges)}")
    judges[name].check(folder, weights)


def check_links(vision: bool, clip: bool) -> None:
    """Raises ValueError when "CLIP of ComfyUI" lacks one of its two inputs."""
    if not (vision and clip):
        raise ValueError(f"the judge `{COMFYUI_CLIP}` needs both inputs: connect `clip_vision` and `clip`")


def clip_folder(folder: Path, weights: str, input_name: str = "`weights`") -> Path:
    """The folder of a CLIP below `folder`, checked for its files.

    Args:
        folder: where the weights of judges are.
        weights: what the user typed.
        input_name: the node's input that names it, for the error.

    Raises:
        ValueError: it is not there, not below the folder, or lacks a file.
    """
    description = f"the folder of a CLIP in transformers' format, such as {CLIP_SOURCE},"
    path = inside(folder, weights, input_name, description)
    clip_files(path)
    return path


def inside(folder: Path, name: str, input_name: str, description: str) -> Path:
    """An existing path below a folder.

    Args:
        folder: the path must stay below it.
        name: what the user typed.
        input_name: the node's input that names it, for the error.
        description: of what is wanted, for the error.

    Raises:
        ValueError: it does not exist, or is not below the folder.
    """
    # Resolved first, so that neither `..` nor a symbolic link leads out of the folder. No path has a zero byte.
    path = (folder / name.replace("\0", "?")).resolve()
    # Not `path.exists()`, which raises for a name that is too long.
    if not name.strip() or not path.is_relative_to(folder.resolve()) or not os.path.exists(path):
        raise ValueError(f"{input_name} must name {description} in {folder}; there is no {quoted(name)}")
    return path
