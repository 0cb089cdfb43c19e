"""The node that trains the recogniser."""

from pathlib import Path

from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.evaluation import judge_choice, recogniser
from .shared.folders import input_folder, judges_folder
from .shared.inputs import CATEGORY_EVALUATION, accepted, seed, valid_name
from .shared.progress import progress_bar


def pictures_folder(folder: str) -> Path:
    """The folder of pictures below ComfyUI's input folder; ValueError where there is none."""
    return judge_choice.inside(input_folder(), folder, "`folder`", "a folder of pictures")


def check_pictures(folder: str) -> None:
    """Raises ValueError when the folder does not hold enough pictures of enough names."""
    recogniser.read_folder(pictures_folder(folder))


class TrainRecogniser(io.ComfyNode):
    """Trains a recogniser on a folder of pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_TrainRecogniser",
            display_name="Train Recogniser",
            category=CATEGORY_EVALUATION,
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
                    tooltip="Adam's learning rate; 1e-4 in the paper.",
                ),
                seed("Seed of the split and of the first weights. The same seed gives the same result."),
            ],
            outputs=[
                io.String.Output(display_name="weights", tooltip="The file's name, for Judge Pictures."),
                io.String.Output(
                    display_name="text", tooltip="How often it is right on the fifth of the pictures that is held out."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None, folder: str | None = None) -> bool | str:
        """None stands for an input that comes by a link."""
        answers = [valid_name(output_name), accepted(recogniser.find_backbone, judges_folder())]
        if folder is not None:
            answers.append(accepted(check_pictures, folder))
        return next((answer for answer in answers if answer is not True), True)

    @classmethod
    def execute(cls, folder: str, output_name: str, epochs: int, lr: float, seed: int) -> io.NodeOutput:
        path = files.writable_path(judges_folder(), output_name)  # before the training, so that it cannot be lost
        network = recogniser.features(recogniser.find_backbone(judges_folder()))
        tensors, metadata = recogniser.train_recogniser(
            network, pictures_folder(folder), epochs, lr, seed, progress_bar(epochs)
        )
        recogniser.save_recogniser(path, tensors, metadata)
        text = recogniser.held_out_summary(metadata)
        return io.NodeOutput(path.name, text, ui=ui.PreviewText(text))


NODES = [TrainRecogniser]
