"""The folders that nodes read from and write to."""

import re
from pathlib import Path

import folder_paths

from ...eraseanything_core import files
from ...eraseanything_core.quoting import quoted
from ...eraseanything_core.training.config import EraseConfig
from ...eraseanything_core.training.run_files import unfinished_run

JUDGES_FOLDER = "erase_judges"  # the folder of models/ that holds the weights of judges


def register_judges() -> None:
    """Tells ComfyUI of models/erase_judges, so that extra_model_paths.yaml can add folders to it."""
    folder_paths.add_model_folder_path(JUDGES_FOLDER, str(Path(folder_paths.models_dir) / JUDGES_FOLDER))


def user_folder() -> Path:
    """Keys, answers of language models, measured strengths: ComfyUI does not serve this folder over HTTP."""
    return Path(folder_paths.get_system_user_directory("eraseanything"))


def input_folder() -> Path:
    """ComfyUI's input folder."""
    return Path(folder_paths.get_input_directory())


def loras_folder() -> Path:
    """The folder that the stock LoraLoader lists first."""
    return Path(folder_paths.get_folder_paths("loras")[0])


def runs_folder() -> Path:
    """Training states and reports: output/eraseanything."""
    return Path(folder_paths.get_output_directory()) / "eraseanything"


def concepts_folder() -> Path:
    """Saved concept sets: output/concepts."""
    return Path(folder_paths.get_output_directory()) / "concepts"


def judges_folder() -> Path:
    """Weights of judges: models/erase_judges."""
    if JUDGES_FOLDER not in folder_paths.folder_names_and_paths:
        register_judges()
    return Path(folder_paths.get_folder_paths(JUDGES_FOLDER)[0])


def lora_files() -> list[str]:
    """The LoRAs that ComfyUI lists, without the formats that are pickles: those run code where they are opened."""
    return [name for name in folder_paths.get_filename_list("loras") if is_safetensors(name)]


def lora_file(name: str) -> Path:
    """The path of a LoRA as ComfyUI lists it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no safetensors file by its name.
    """
    if not is_safetensors(name):
        raise ValueError(f"{quoted(name)} is no .safetensors file, and other formats are never opened: convert it")
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def is_safetensors(name: str) -> bool:
    """Whether a file is of the one format that is opened, by its name."""
    return name.lower().endswith((".safetensors", ".sft"))


def free_lora_path(name: str) -> Path:
    """A LoRA file that does not exist yet: the name, or the name with a number; it may be in a sub-folder.

    Raises:
        ValueError: `name` is no file name, or the folder does not take it.
    """
    return files.free_path(loras_folder(), name)


def run_folder(output_name: str, config: EraseConfig, base: str) -> Path:
    """The folder of a training's state: that of a stopped run of this name and these settings, or a new one.

    Every file of the run is proved to be writable here: an hour of training is lost where the last one is not.

    Args:
        output_name: of the LoRA, also in a sub-folder; the folder has the same name, with a number if either is in use.
        config: the run's settings.
        base: names the weights of the model.

    Raises:
        ValueError: a folder does not take the name, or a prompt has no place for the concept.
    """
    subfolder, _, name = files.check_name(output_name, subfolders=True).rpartition("/")
    loras = loras_folder() / subfolder
    runs = runs_folder() / subfolder
    # Made where they are missing, since both are listed for names that are in use.
    for folder in (loras, runs):
        files.check_folder(folder)
    run = unfinished_run(_runs_named(name, runs), config, base) or _new_run(name, runs, loras)
    files.check_new_folder(run)
    if run.is_dir():
        files.check_folder(run)
    free_lora_path(run_name(run))
    return run


def run_name(run: Path) -> str:
    """The name of a run as it was typed: with its sub-folders, and the number that was added."""
    return run.relative_to(runs_folder()).as_posix()


def _runs_named(name: str, runs: Path) -> list[Path]:
    """The runs of an output name: those called so, with or without a number."""
    numbered = re.compile(rf"{re.escape(name)}(_\d+)?")
    return [folder for folder in sorted(runs.iterdir()) if numbered.fullmatch(folder.name)]


def _new_run(name: str, runs: Path, loras: Path) -> Path:
    """A folder whose name neither a run nor a LoRA has."""
    taken = files.names_in(loras) | {entry.name for entry in runs.iterdir()}
    return runs / files.free_name(name, taken)
