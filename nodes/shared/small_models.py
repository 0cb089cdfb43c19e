"""TinyFlux's weights, which come with the pack's repository, as ComfyUI's loaders find them."""

from pathlib import Path

import folder_paths

WEIGHTS = Path(__file__).resolve().parents[2] / "eraseanything_core" / "tinyflux" / "weights"
KINDS = ("diffusion_models", "text_encoders", "vae")


def register_tinyflux() -> None:
    """Tells ComfyUI of the folder, so that TinyFlux's workflows run where nobody has copied its files.

    The folder comes last: a file of the same name in a folder of the user is found first. The registry's package is
    shipped without the weights, and then nothing is registered.
    """
    if not WEIGHTS.is_dir():
        return
    for kind in KINDS:
        folder_paths.add_model_folder_path(kind, str(WEIGHTS))
