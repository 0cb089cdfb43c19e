"""The node that trains the recogniser."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.evaluation import judge_choice, recogniser
from .evaluate import CATEGORY
from .judges import judges_folder
from .shared.inputs import accepted, checked, seed


def inside_input(folder: str) -> Path:
    return judge_choice.inside(Path(folder_paths.get_input_directory()), folder, "`folder`", "a folder of pictures")


def named_pictures(folder: str) -> dict[str, list[Path]]:
    """The pictures of every name in a folder of ComfyUI's input folder; ValueError says what is missing."""
    return recogniser.read_folder(inside_input(folder))


class TrainRecogniser(io.ComfyNode):
    """Trains a recogniser on a folder of pictures."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_TrainRecogniser",
            display_name="Train Recogniser",
            category=CATEGORY,
            description="Trains the paper's recogniser (MobileNetV2 and one dense layer) on a folder of pictures.",
            search_aliases=["celebrity", "classifier", "face"],
            inputs=[
                io.String.Input(
                    "folder", tooltip="In ComfyUI's input folder: it holds one folder of pictures for each name."
                ),
                io.String.Input("output_name", default="recogniser", tooltip="File in models/erase_judges."),
                io.Int.Input("epochs", default=200, min=1, max=10000, tooltip="Passes over the training pictures."),
                io.Float.Input(
                    "lr",
                    default=1e-4,
                    min=1e-6,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Adam's rate; 1e-4 in the paper.",
                ),
                seed("Splits and initialises."),
            ],
            outputs=[
                io.String.Output(display_name="weights", tooltip="The file's name, for Erase Judge."),
                io.String.Output(
                    display_name="text", tooltip="How often it is right on the fifth that it was not given."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name=None, folder=None):
        """None stands for a linked input."""
        found = [checked(output_name), accepted(recogniser.find_backbone, judges_folder())]
        found += [] if folder is None else [accepted(named_pictures, folder)]
        return next((answer for answer in found if answer is not True), True)

    @classmethod
    def execute(cls, folder, output_name, epochs, lr, seed) -> io.NodeOutput:
        pictures = inside_input(folder)
        path = files.writable(judges_folder(), output_name)
        net = recogniser.features(recogniser.find_backbone(judges_folder()))
        tensors, told = recogniser.train(net, pictures, epochs, lr, seed)
        recogniser.save_recogniser(path, tensors, told)
        text = recogniser.summary(told)
        return io.NodeOutput(path.name, text, ui=ui.PreviewText(text))


NODES = [TrainRecogniser]
