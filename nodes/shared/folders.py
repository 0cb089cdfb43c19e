"""The folders that nodes read from and write to."""

from pathlib import Path

import folder_paths

from ...eraseanything_core import files
from ...eraseanything_core.quoting import quoted

JUDGES = "erase_judges"  # the folder of models/ that holds the weights of judges


def register_judges() -> None:
    """Tells ComfyUI of models/erase_judges, so that extra_model_paths.yaml can add folders to it."""
    folder_paths.add_model_folder_path(JUDGES, str(Path(folder_paths.models_dir) / JUDGES))


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
    if JUDGES not in folder_paths.folder_names_and_paths:
        register_judges()
    return Path(folder_paths.get_folder_paths(JUDGES)[0])


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


def lora_names() -> set[str]:
    """The names of the files in the first LoRA folder, without ending."""
    # Whatever the case of the ending: on Windows and macOS the file would be the same. A missing folder has no names.
    return {file.stem for file in loras_folder().glob("*") if file.suffix.lower() == ".safetensors"}


def free_lora_path(name: str) -> Path:
    """A LoRA file that does not exist yet: the name, or the name with a number.

    Raises:
        ValueError: `name` is no plain file name, or the folder does not take it.
    """
    free_name = files.free_name(files.check_name(name), lora_names())
    return files.writable_path(loras_folder(), free_name)


def run_folder(output_name: str, resume: str) -> Path:
    """The folder of a training's state: a new one, or that of the run to continue.

    Every file of the run is proved to be writable here: an hour of training is lost where the last one is not.

    Args:
        output_name: of the LoRA; the folder has the same name, with a number if either is in use.
        resume: name of a run to continue, or empty.

    Raises:
        ValueError: a folder does not take the name, or there is no such run.
    """
    runs = runs_folder()
    # Made where they are missing, since both are listed for names that are in use.
    for folder in (loras_folder(), runs):
        files.check_folder(folder)
    run = runs / _run_name(output_name, resume, runs)
    files.check_new_folder(run)
    if run.is_dir():
        files.check_folder(run)
    free_lora_path(run.name)
    return run


def _run_name(output_name: str, resume: str, runs: Path) -> str:
    """A name that neither a run nor a LoRA has, or that of the run to continue."""
    if not resume.strip():
        taken = lora_names() | {entry.name for entry in runs.iterdir()}
        return files.free_name(files.check_name(output_name), taken)
    name = files.check_name(resume, label="the run to resume,")
    if not (runs / name).is_dir():
        names = sorted(entry.name for entry in runs.iterdir() if entry.is_dir())
        raise ValueError(f"there is no run {name!r} to resume; there are: {', '.join(names) or 'none'}")
    return name
