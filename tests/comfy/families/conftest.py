"""The folder of LoRAs, as the trainer's tests have it, and the trainer on a family's small model."""

import pytest

from tests.comfy.training.node_runs import SMALL, WORDS, execute


class Vae:
    first_stage_model = None  # live previews then do without it

    def decode(self, latents):
        return latents.flatten(1).mean(1)[:, None, None, None].expand(-1, 32, 32, 3).clone()


@pytest.fixture
def loras(tmp_path, monkeypatch):
    """The folder of LoRAs; runs are in the output folder beside it."""
    import folder_paths

    folder = tmp_path / "loras"
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return folder


@pytest.fixture
def trainer(pack, loras):
    """Runs the node on a family's small model; the text encoder is a stand-in unless one is given."""
    # Read before the folder that needs ComfyUI is skipped, so ComfyUI is imported here.
    from comfy_api.latest import io

    from tests.comfy.families.test_family_training import targets_of
    from tests.comfy.families.words import Words
    from tests.comfy.layouts import CASES

    node = pack["EraseAnything_EraseTrainer"]
    values = {i.id: i.default for i in node.define_schema().inputs if isinstance(i, io.WidgetInput)}

    def run(name, patcher, output_name="eraser", clip=None, **settings):
        case = CASES[name]
        cell = patcher.model.latent_format.spacial_downscale_ratio
        height, width = (-(-cells * cell // 16) * 16 for cells in case.size[-2:])
        small = SMALL | WORDS | {"width": width, "height": height, "targets": targets_of(name)} | settings
        given = {"model": patcher, "clip": clip or Words(case), "vae": Vae(), "concept": "red star"}
        return execute(node, values | given | {"settings": small, "output_name": output_name})

    return run
