"""The workflow that judges an eraser, run on a real server with little of everything."""

import json
from pathlib import Path

from eraseanything_core.evaluation.report import from_json
from scripts.erase_settings import UNWATCHED, with_settings
from scripts.graph import ui_to_api
from tests.comfy.conftest import BASE

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "tinyflux_evaluate.json"
TRAINING = {"steps": 1, "batch_size": 1, "retain_batch_size": 1, "sampling_steps": 2, "cached_trajectories": 1}
LITTLE = {
    "EraseAnything_PromptSet": {"count": 2},
    "KSampler": {"steps": 2},
}


def test_the_workflow_that_judges_runs_to_its_report(server):
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    graph = with_settings(ui_to_api(workflow, server.object_info()), TRAINING | UNWATCHED)
    for node in graph.values():
        node["inputs"] |= LITTLE.get(node["class_type"], {})
    (told,) = (n["inputs"] for n in graph.values() if n["class_type"] == "EraseAnything_ErasureReport")
    server.run(graph, timeout=300)
    folder = BASE / "output" / "eraseanything"
    report = from_json((folder / f"{told['output_name']}.json").read_text(encoding="utf-8"))
    assert set(report.cells) == {"acc_e", "acc_g", "acc_ir", "attack"} and set(report.scores) == {"h_c", "h_o"}
    plain, attacked = report.cells["acc_e"], report.cells["attack"]
    assert plain.after.n == attacked.after.n == 2 and plain.seeds == attacked.seeds
    assert plain.prompts != attacked.prompts and report.concept in plain.prompts[0]
    assert attacked.conditional_success is not None and report.judge["name"] == "TinyFlux CNN"
    assert (folder / f"{told['output_name']}.md").is_file() and (folder / f"{told['output_name']}.png").is_file()
