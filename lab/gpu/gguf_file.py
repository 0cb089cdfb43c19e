"""The small model as a GGUF file, through the loader node of ComfyUI-GGUF where that is installed."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import folder_paths
import torch
from torch import Tensor

from lab.provenance import CACHE

PACK = "comfyui-gguf"  # its folder, in small letters
FORM = "Q8_0"
FILE = CACHE / "gpu" / "small.gguf"


def gguf_node() -> Any:
    """ComfyUI-GGUF's class of the loader node; None where the pack is not installed."""
    for folder in folder_paths.get_folder_paths("custom_nodes"):
        for pack in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if pack.name.lower() == PACK and (pack / "__init__.py").exists():
                return _imported(pack).NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]
    return None


def _imported(pack: Path) -> Any:
    spec = importlib.util.spec_from_file_location("comfyui_gguf", pack / "__init__.py")
    assert spec is not None and spec.loader is not None, "a file of Python has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules["comfyui_gguf"] = module  # the pack imports its own files from it
    spec.loader.exec_module(module)
    return module


def written(state: dict[str, Tensor], is_packed: Any) -> dict[str, Tensor]:
    """Writes a state dict as GGUF, and gives it back with its weights unpacked.

    Args:
        state: of the model.
        is_packed: name and tensor to whether a weight is held in few bits.
    """
    import gguf

    FILE.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(FILE, "flux")
    plain = {}
    for name, tensor in state.items():
        kind = gguf.GGMLQuantizationType[FORM if is_packed(name, tensor) else "F32"]
        blocks = gguf.quantize(tensor.float().numpy(), kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        plain[name] = torch.from_numpy(gguf.dequantize(blocks, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain


def loaded(node: Any) -> Any:
    """The MODEL of that file by a loader node."""
    folder_paths.add_model_folder_path("diffusion_models", str(FILE.parent))
    with torch.inference_mode():
        return node().load_unet(FILE.name)[0]
