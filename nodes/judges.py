"""The node that chooses a judge for other nodes."""

from typing import Any

from comfy_api.latest import io

from ..eraseanything_core.concepts.prompts import words_of
from ..eraseanything_core.evaluation.judge_choice import JudgeRequest, build_judge
from .shared.folders import judges_folder
from .shared.inputs import CATEGORY_EVALUATION
from .shared.judges import JUDGES, ChosenJudge, judge_inputs, judge_ready
from .shared.types import ERASE_JUDGE


class ChooseJudge(io.ComfyNode):
    """A judge, for nodes that ask one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        label = "The judge's label for pictures that show the concept; for NudeNet: exposed."
        return io.Schema(
            node_id="EraseAnything_ChooseJudge",
            display_name="Choose Judge",
            category=CATEGORY_EVALUATION,
            description="Chooses the judge by whose answers Erase Strength calibrates its dial.",
            search_aliases=["NudeNet", "CLIP zero-shot", "classifier"],
            inputs=[io.String.Input("label", tooltip=label), *judge_inputs()],
            outputs=[ERASE_JUDGE.Output(display_name="judge", tooltip="For Erase Strength.")],
        )

    @classmethod
    def validate_inputs(cls, judge: str | None = None, weights: str | None = None) -> bool | str:
        # Which inputs are connected is not known here; `build_judge` checks them when the node runs.
        return judge_ready(judge, weights, clip_vision=True, clip=True)

    @classmethod
    def execute(
        cls,
        label: str,
        judge: str,
        labels: str,
        template: str,
        weights: str,
        threshold: float,
        clip_vision: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        label = label.strip()
        request = JudgeRequest(
            wanted=(label,),
            folder=judges_folder(),
            labels=words_of(labels),
            template=template,
            weights=weights.strip(),
            threshold=threshold,
            vision=clip_vision,
            clip=clip,
        )
        return io.NodeOutput(ChosenJudge(build_judge(judge, request, JUDGES), label))


NODES = [ChooseJudge]
