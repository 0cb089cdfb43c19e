"""ComfyUI without its server, as a worker of a fleet holds it: loader nodes, a host to train on, and pictures.

ComfyUI reads its command line while it is imported. So nothing of it, and nothing that imports it, is imported before
`HeadlessComfyUI` has set that.
"""

import asyncio
import hashlib
import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..lora.files import LoraModel, read_lora
from ..lora.fusion import FusionConfig
from ..lora.headers import ErasedConcept, joint_header
from ..lora.key_styles import eraser_tensors, read_eraser, widest_dtype
from ..lora.merge import FUSION
from ..quoting import quoted

OUTPUTS = {"model": "MODEL", "clip": "CLIP", "vae": "VAE"}  # what loaders give, as ComfyUI names it
JUDGES_FOLDER = "erase_judges"
SAMPLER = ("euler", "simple")
LATENT_CHANNELS = 16  # of an empty latent; ComfyUI's sampler fits them to the model
DOWNSCALE = 8  # pixels a latent cell


class HeadlessComfyUI:
    """One ComfyUI in this process.

    Args:
        comfyui: folder with ComfyUI's main.py.
        arguments: of its command line, such as ["--cpu", "--base-directory", "/data"]; nothing listens on a port.
    """

    def __init__(self, comfyui: str, arguments: Sequence[str]) -> None:
        # In front: the pack has a folder `nodes` as well, and ComfyUI's imports mean its own.
        sys.path.insert(0, comfyui)
        sys.argv = [str(Path(comfyui) / "main.py"), *arguments]
        import comfy.options

        comfy.options.enable_args_parsing()
        self._add_model_folders(Path(comfyui))
        # By its name: where types are checked, `import nodes` would mean the pack's folder.
        self.nodes = importlib.import_module("nodes")
        self.all_nodes_loaded = False
        self.base = ""
        self.loaded: dict[str, Any] = {}

    def _add_model_folders(self, comfyui: Path) -> None:
        """As ComfyUI's main.py: its extra_model_paths.yaml, and those that its command line names."""
        import folder_paths
        import utils.extra_config  # before ComfyUI's server: another module `utils` would hide it
        from comfy.cli_args import args

        extra = [path for group in args.extra_model_paths_config or [] for path in group]
        own = comfyui / "extra_model_paths.yaml"
        for path in [*([str(own)] if own.is_file() else []), *extra]:
            utils.extra_config.load_extra_path_config(path)
        judges = str(Path(folder_paths.models_dir) / JUDGES_FOLDER)
        folder_paths.add_model_folder_path(JUDGES_FOLDER, judges)

    @property
    def judges(self) -> Path:
        """The folder of judges' weights."""
        import folder_paths

        return Path(folder_paths.get_folder_paths(JUDGES_FOLDER)[0])

    def digest(self, base: Mapping[str, Any]) -> dict[str, str]:
        """SHA-256 of the files that a base's loaders name, by name.

        Raises:
            ValueError: a loader names no file that is here.
        """
        digests = {}
        for part, loader in base.items():
            node, inputs = _one_loader(part, loader)
            files = _model_files(inputs)
            if not files:
                raise ValueError(f"{node} names no model file that is here: {quoted(json.dumps(inputs))}")
            digests.update({name: "+".join(map(_sha256, paths)) for name, paths in files.items()})
        return digests

    def host(self, base: Mapping[str, Any]) -> Any:
        """The `ComfyHost` of a base.

        Raises:
            ValueError: there is no such loader, or it gives no MODEL or CLIP.
        """
        from .host import ComfyHost

        loaded = self._load(base)
        return ComfyHost(loaded["model"], loaded["clip"])

    def text_linears(self, base: Mapping[str, Any]) -> Any:
        """The `TextLinears` of a base; for what is wrong see `host` and there."""
        from .text_linears import TextLinears

        loaded = self._load(base)
        return TextLinears(loaded["model"], loaded["clip"])

    def fused(self, base: Mapping[str, Any], loras: Sequence[Path], weight: float, seed: int, cache: Path) -> LoraModel:
        """One LoRA of several by closed-form fusion; for what is wrong see `host`.

        Args:
            base: whose states are read.
            loras: files of its erasers.
            weight: of each.
            seed: of the choice of states.
            cache: a folder for the states.
        """
        from .combining import closed_form

        loaded = self._load(base)
        read = [read_lora(path) for path in loras]
        names = [path.name for path in loras]
        parts = [read_eraser(lora, lora.header, name) for lora, name in zip(read, names, strict=True)]
        erased = [ErasedConcept.from_header(lora.header, name) for lora, name in zip(read, names, strict=True)]
        weights = [weight] * len(parts)
        config = FusionConfig.for_concept(erased[0], seed)
        one = closed_form(loaded["model"], loaded["clip"], parts, weights, erased, (), config, cache)
        header = joint_header([lora.header for lora in read], names, weights, FUSION)
        return LoraModel(eraser_tensors(one, widest_dtype(read)), header)

    def pictures(
        self,
        base: Mapping[str, Any],
        rows: Sequence[tuple[str, int, float]],
        size: tuple[int, int, int],
        lora: Path | None,
        strength: float,
    ) -> Iterator[Tensor]:
        """Pictures [h, w, 3] in [0, 1], each by itself, so that none depends on which others are drawn.

        Args:
            base: with a `vae`.
            rows: prompt, seed and guidance of each.
            size: width, height and sampler steps.
            lora: an eraser's file; None draws with the base alone.
            strength: of the eraser.

        Raises:
            ValueError: see `host`; or the base has no `vae`.
        """
        from .patch import with_lora

        loaded = self._load(base)
        if "vae" not in loaded:
            raise ValueError("the base has no `vae`: name its loader, since pictures are asked for")
        model = loaded["model"]
        if lora is not None:
            tensors = read_lora(lora)
            model = with_lora(model, read_eraser(tensors, tensors.header, lora.name), strength)
        with torch.inference_mode():
            for prompt, seed, guidance in rows:
                yield self._picture(model, loaded, prompt, seed, guidance, size)

    def _picture(
        self, model: Any, loaded: Mapping[str, Any], prompt: str, seed: int, guidance: float, size: tuple[int, int, int]
    ) -> Tensor:
        import node_helpers

        width, height, steps = size
        clip = loaded["clip"]
        encoded = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        asked = node_helpers.conditioning_set_values(encoded, {"guidance": guidance})
        empty = {"samples": torch.zeros(1, LATENT_CHANNELS, height // DOWNSCALE, width // DOWNSCALE)}
        # At a CFG of 1 the negative prompt is never looked at.
        (latent,) = self.nodes.common_ksampler(model, seed, steps, 1.0, *SAMPLER, asked, asked, empty)
        picture: Tensor = loaded["vae"].decode(latent["samples"])[0]
        return picture.cpu()

    def _load(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """What the loaders of a base give, kept until another base is asked for."""
        key = json.dumps(base, sort_keys=True)
        if self.base != key:
            # The old one goes first, else both are in memory.
            self.base = ""
            self.loaded = {}
            self.loaded = {part: self._run_loader(part, loader) for part, loader in base.items()}
            self.base = key
        return self.loaded

    def _run_loader(self, part: str, loader: Mapping[str, Any]) -> Any:
        name, inputs = _one_loader(part, loader)
        node = self._node_class(name)
        if OUTPUTS[part] not in node.RETURN_TYPES:
            raise ValueError(f"the loader {name} gives no {OUTPUTS[part]}")
        if hasattr(node, "PREPARE_CLASS_CLONE"):
            results = node.PREPARE_CLASS_CLONE(None).execute(**inputs).args
        else:
            results = getattr(node(), node.FUNCTION)(**inputs)
        return results[list(node.RETURN_TYPES).index(OUTPUTS[part])]

    def _node_class(self, name: str) -> Any:
        """A node class of ComfyUI's basic ones or, where it is none, of custom nodes and of ComfyUI's extras."""
        known = self.nodes.NODE_CLASS_MAPPINGS
        if name not in known and not self.all_nodes_loaded:
            import server

            self.all_nodes_loaded = True
            loop = asyncio.new_event_loop()
            # Custom nodes add routes to the server when they are imported. This one never listens.
            server.PromptServer(loop)
            loop.run_until_complete(self.nodes.init_external_custom_nodes())
            if name not in known:  # most loaders that are missing are custom nodes, and the extras take seconds
                loop.run_until_complete(self.nodes.init_builtin_extra_nodes())
        if name not in known:
            raise ValueError(f"ComfyUI has no node {quoted(name)} here: install the pack that has it")
        return known[name]


def _one_loader(part: str, loader: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class and the inputs of the one loader of a part."""
    ((name, inputs),) = loader.items()
    return name, inputs


def _model_files(inputs: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files that a loader's inputs name, in whichever of ComfyUI's model folders they are."""
    import folder_paths

    found = {}
    for value in inputs.values():
        if not isinstance(value, str):
            continue
        # One file may be in several kinds of folders, and two of one name are different files: all decide.
        paths = {folder_paths.get_full_path(kind, value) for kind in folder_paths.folder_names_and_paths}
        files = sorted({Path(path).resolve() for path in paths if path and Path(path).is_file()})
        if files:
            found[value] = files
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()
