"""The fleet on TinyFlux: a headless ComfyUI, a training that goes on, pictures, what is gathered, and the node."""

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import folder_paths
import pytest
from safetensors.torch import load_file

from eraseanything_core.comfy_bridge.headless import HeadlessComfyUI
from eraseanything_core.fleet import direct_methods, session_runner, training_job
from eraseanything_core.fleet.expand import fusion_jobs, training_jobs, with_pictures
from eraseanything_core.fleet.gather import gather
from eraseanything_core.fleet.plan import concept_sets, make_plan
from eraseanything_core.fleet.results import Results
from eraseanything_core.fleet.worker import Worker, code_digest
from eraseanything_core.lora.fusion import FusionConfig
from scripts.erase_settings import GROUPS, settings_nodes
from scripts.server import GraphError
from tests.comfy.conftest import BASE, COMFYUI, ROOT

WEIGHTS = Path(__file__).resolve().parents[2] / "eraseanything_core" / "tinyflux" / "weights"
TINYFLUX = {
    "model": {"UNETLoader": {"unet_name": "tinyflux.safetensors", "weight_dtype": "default"}},
    "clip": {"EraseAnything_TinyFlux": {"text_encoder": "tinyflux_text.safetensors"}},
    "vae": {"VAELoader": {"vae_name": "tinyflux_vae.safetensors"}},
}
SHORT = {
    "width": 96,
    "height": 96,
    "steps": 4,
    "sampling_steps": 3,
    "cached_trajectories": 2,
    "cached_retain_trajectories": 4,
    "sentences": 4,
    "save_every": 1,
    "monitor_every": 0,
    "stop_when_gone": False,
    "adapt_rate": False,
}


@pytest.fixture
def session(pack, monkeypatch):
    """A headless ComfyUI in this process, in which pytest has chosen ComfyUI's settings already."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    made = HeadlessComfyUI(str(COMFYUI), [])
    monkeypatch.setitem(made.nodes.NODE_CLASS_MAPPINGS, "EraseAnything_TinyFlux", pack["EraseAnything_TinyFlux"])
    return made


@pytest.fixture
def worker(session, monkeypatch):
    """A worker whose runner holds that session."""
    monkeypatch.setattr(session_runner, "named", lambda path: lambda: session)
    return Worker(
        code_digest(), "eraseanything_core.fleet.session_runner:SessionRunner", {"session": "", "settings": {}}
    )


def make(tmp_path, **fields):
    results = Results(tmp_path / "results")
    results.make()
    fields = {"results": results.folder, "concepts": ["heart"], "bases": {"tinyflux": TINYFLUX}, **fields}
    return make_plan({"settings": SHORT, "methods": {"quick": {"preset": "quick"}}, **fields}), results


def jobs_of(plan, worker, results):
    known = {"tinyflux": worker.digest(TINYFLUX, str(results.folder))["files"]}
    return with_pictures(plan, training_jobs(plan, concept_sets(plan), known), known, {})


def do(worker, results, job) -> str:
    return worker.run(job.as_dict(), str(results.folder))["error"]


def test_a_base_is_known_by_the_files_of_its_loaders(session):
    expected = {}
    for name in ("tinyflux.safetensors", "tinyflux_text.safetensors", "tinyflux_vae.safetensors"):
        expected[name] = hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest()
    assert session.digest(TINYFLUX) == expected
    with pytest.raises(ValueError, match="UNETLoader names no model file that is here: .*flux2"):
        session.digest({"model": {"UNETLoader": {"unet_name": "flux2.safetensors"}}})


def test_a_loader_that_is_missing_or_gives_something_else_is_named(session):
    session.all_nodes_loaded = True
    with pytest.raises(ValueError, match="ComfyUI has no node 'UnetLoaderGGUF' here: install the pack that has it"):
        session.host({"model": {"UnetLoaderGGUF": {}}, "clip": TINYFLUX["clip"]})
    with pytest.raises(ValueError, match="the loader VAELoader gives no MODEL"):
        session.host({"model": TINYFLUX["vae"]})


def test_a_training_that_was_lost_goes_on_with_the_same_bits(worker, tmp_path, monkeypatch):
    plan, results = make(tmp_path)
    (eraser,) = jobs_of(plan, worker, results)
    whole = training_job.train_eraser

    def lost(host, config, **kwargs):
        def progress(pairs, losses):
            if pairs == 3:
                raise OSError("the machine is gone")

        return whole(host, config, progress, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(training_job, "train_eraser", lost)
        assert do(worker, results, eraser.training) == "OSError: the machine is gone"
    assert results.missing([eraser.training]) and list((results.work / eraser.training.id / "run").iterdir())
    pairs = []
    again = lambda host, config, **kwargs: whole(host, config, lambda n, losses: pairs.append(n), **kwargs)  # noqa: E731
    monkeypatch.setattr(training_job, "train_eraser", again)
    assert not do(worker, results, eraser.training) and pairs == [4]

    plan, alone = make(tmp_path / "alone")
    assert not do(worker, alone, eraser.training) and pairs == [4, 1, 2, 3, 4]
    files = [each.result(eraser.training.id) / training_job.LORA_FILE for each in (results, alone)]
    assert files[0].read_bytes() == files[1].read_bytes()
    told = json.loads((results.result(eraser.training.id) / "job.json").read_text())
    assert len(told["attempts"]) == 2 and not list(results.work.iterdir()) and not list(results.failed.iterdir())


def test_pictures_are_judged_and_all_is_gathered(worker, tmp_path):
    (tmp_path / "named.csv").write_text("prompt,seed,label\na photo of a {},1,{}\na red {},2,{}\n")
    (tmp_path / "kept.csv").write_text("prompt,seed,label\na photo of a moon,1,moon\n")
    pictures = {
        "sets": {
            "named": {"file": tmp_path / "named.csv", "cell": "acc_e"},
            "kept": {"file": tmp_path / "kept.csv", "cell": "acc_ir"},
        },
        "judge": {"name": "TinyFlux CNN"},
        **{"width": 96, "height": 96, "steps": 6, "rows": 1},
    }
    settings = {**SHORT, "steps": 1}
    methods = {"quick": {"preset": "quick"}, "ablation": {"preset": "quick", "method": "concept_ablation"}}
    plan, results = make(
        tmp_path, concepts=["heart", "star"], pictures=pictures, settings=settings, methods=methods, merge={}
    )
    erasers = jobs_of(plan, worker, results)
    drawings = [job for e in erasers for share in e.shares.values() for job in (*share.before, *share.after)]
    # Without an eraser one picture of the kept ones serves all four, and those of a concept both methods.
    assert len(drawings) == 4 * 2 * 3 and len({job.id for job in drawings}) == 1 + 2 * 2 + 4 * 3
    for job in [*(eraser.training for eraser in erasers), *results.missing(drawings)]:
        assert not do(worker, results, job), job.label
    gathered = gather(plan, erasers, results, tmp_path / "out", tmp_path / "loras")
    assert [row["concept"] for row in gathered.rows] == ["heart", "star"] * 2
    assert all(row["acc_e before"] == 1.0 and row["acc_ir n"] == 1 for row in gathered.rows)
    assert {path.name for path in gathered.loras} == {path.name for path in (tmp_path / "loras").iterdir()}
    reports = [json.loads(path.read_text()) for path in gathered.reports]
    assert [report["concept"] for report in reports] == ["heart", "star"] * 2
    assert reports[0]["judge"]["name"] == "TinyFlux CNN" and reports[0]["lora_sha256"]
    assert len(gathered.merged) == 2 and not gathered.notes
    one, parts = load_file(gathered.merged[0]), [load_file(path) for path in gathered.loras[:2]]
    ranks = [{key: tensor.shape for key, tensor in lora.items()} for lora in (one, *parts)]
    name = next(key for key in one if "lora_A" in key)
    assert ranks[0][name][0] == ranks[1][name][0] + ranks[2][name][0]


def test_methods_that_are_not_trained_in_pairs_and_a_fusion(worker, tmp_path, monkeypatch):
    """UCE, double projection, MACE and the published code write a LoRA that TinyFlux takes; two erasers are fused."""
    few = partial(FusionConfig, steps=1, prompts=2, kept_prompts=4, rows=64)
    monkeypatch.setattr(direct_methods, "FusionConfig", few)
    monkeypatch.setattr(FusionConfig, "for_concept", lambda erased, seed: few(width=96, height=96, seed=seed))
    texts = {"sentences": 4, "kept": 8}
    size = {"width": 96, "height": 96, "sampling_steps": 2}
    methods = {
        "uce": {"method": "uce", "settings": texts},
        "projection": {"method": "double projection", "settings": {"rank": 8, **texts}},
        "mace": {"method": "mace", "settings": {**size, **texts, "steps": 2, "pictures": 2, "batch": 1}},
        "published": {"method": "published", "settings": {**size, "steps": 2, "images": 1}},
    }
    plan, results = make(tmp_path, concepts=["cat"], methods=methods, settings={})
    for eraser in jobs_of(plan, worker, results):
        assert not do(worker, results, eraser.training), eraser.method
    gathered = gather(plan, jobs_of(plan, worker, results), results, tmp_path / "out", tmp_path / "loras")
    assert [row["pairs"] for row in gathered.rows] == [0, 0, 2, 2]
    for path in gathered.loras:
        lora = load_file(path)
        assert all(tensor.isfinite().all() for tensor in lora.values()) and any(t.any() for t in lora.values())
    fused = {"merge": {"mode": "closed-form fusion"}, "concepts": ["cat", "dog"], "settings": {**SHORT, "steps": 1}}
    plan, results = make(tmp_path, **fused)
    erasers = jobs_of(plan, worker, results)
    (fusion,) = fusion_jobs(plan, erasers).values()
    for job in [*(eraser.training for eraser in erasers), fusion]:
        assert not do(worker, results, job), job.label
    gathered = gather(plan, erasers, results, tmp_path / "fused", tmp_path / "loras")
    one, parts = load_file(gathered.merged[0]), [load_file(path) for path in gathered.loras]
    assert set(one) >= {key for part in parts for key in part} and not gathered.notes
    gated, _ = make(tmp_path, **{**fused, "merge": {"mode": "prompt-gated"}})
    gathered = gather(gated, erasers, results, tmp_path / "gated", tmp_path / "loras")
    assert len(gathered.merged) == 1 and "a file has no gates" in gathered.notes[0]


def test_another_file_under_the_same_name_is_refused(worker, tmp_path):
    plan, results = make(tmp_path)
    known = {"tinyflux": {"tinyflux.safetensors": "0" * 64}}
    (eraser,) = training_jobs(plan, concept_sets(plan), known)
    assert "tinyflux.safetensors" in do(worker, results, eraser.training)
    assert "differs here from the file that the plan was started with" in do(worker, results, eraser.training)


# Ray gives a node 30 seconds to start, which a machine with other work may not have.
COMMAND = """
import sys
from ray._private import services
from fleet_stand_in import patiently
from lab.fleet.command import main
services.get_node = patiently(services.get_node)
sys.exit(main())
"""


def test_the_command_does_a_plan(tmp_path):
    """`dev.py fleet plan.yaml` from its own process to the gathered files, by Ray and a ComfyUI in a worker."""
    pytest.importorskip("ray", reason="the fleet needs Ray: pip install ray")
    plan = {"results": "out", "concepts": ["heart"], "bases": {"tinyflux": TINYFLUX}, "settings": {**SHORT, "steps": 1}}
    plan |= {"methods": {"quick": {"preset": "quick"}}, "workers": {"gpus": 0, "count": 1}}
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    paths = [str(ROOT), str(ROOT / "tests" / "unit"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "COMFYUI_PATH": str(COMFYUI), "COMFYUI_BASE": str(BASE)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "plan.yaml"), "--cpu"]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "1 of 1 jobs are done, 0 of them before; 0 failed" in ran.stdout and "dashboard" in ran.stdout
    assert "1/1" in ran.stderr, "the bar"
    gathered = tmp_path / "out" / "gathered"
    (lora,) = (gathered / "loras").iterdir()
    assert load_file(lora) and "heart" in (gathered / "table.md").read_text()


def batch_graph(**inputs):
    """The node behind TinyFlux's loaders; its settings are those of the short runs that the settings nodes have."""
    known = {name: value for name, value in SHORT.items() if any(name in names for names in GROUPS.values())}
    graph, settings = settings_nodes("settings", {**known, "steps": 1})
    for key, part in (("1", "model"), ("2", "clip")):
        ((name, values),) = TINYFLUX[part].items()
        graph[key] = {"class_type": name, "inputs": dict(values)}
    links = {"model": ["1", 0], "clip": ["2", 0], "settings": settings}
    graph["3"] = {"class_type": "EraseAnything_EraseBatch", "inputs": {**links, **INPUTS, **inputs}}
    return graph


INPUTS = {
    "concept_list": "heart\nstar",
    "preset": "quick",
    "output_name": "batch",
    "seed": 0,
    "merge": "concatenate",
    "workers": 1,
    "address": "",
}


def test_erase_batch_trains_a_list_from_the_graph(server):
    """Ray's own processes, another ComfyUI in a worker, and the files of both concepts."""
    pytest.importorskip("ray", reason="the fleet needs Ray: pip install ray")
    (text,) = server.run(batch_graph())["outputs"]["3"]["text"]
    assert text.startswith("2 of 2 jobs are done, 0 of them before; 0 failed")
    loras = sorted((BASE / "models" / "loras" / "batch").iterdir())
    assert [path.name.split(".")[0] for path in loras] == ["heart", "star"]
    assert all(path.name in text for path in loras)
    assert str(BASE) not in text


def test_workers_of_a_cluster_get_a_gpu_each_whatever_this_machine_has(pack, monkeypatch):
    batch = sys.modules["pack_under_test.nodes.batch"]
    monkeypatch.setattr(sys, "argv", ["main.py", "--cpu", "--reserve-vram", "1"])
    base = ["--base-directory", folder_paths.base_path]
    assert batch.worker_fields(0, "") == {"gpus": 0, "cpus": 1, "count": 1}
    assert batch.command_line("") == ["--cpu", "--reserve-vram", "1", *base]
    assert batch.worker_fields(0, "auto") == {"gpus": 1, "cpus": 1, "count": 0}
    assert batch.worker_fields(3, "auto")["count"] == 3
    assert batch.command_line("auto") == ["--reserve-vram", "1", *base]


def test_erase_batch_wants_the_loaders_themselves(server):
    graph = batch_graph()
    graph["4"] = {
        "class_type": "ModelSamplingFlux",
        "inputs": {"model": ["1", 0], "max_shift": 1.15, "base_shift": 0.5},
    }
    graph["4"]["inputs"] |= {"width": 96, "height": 96}
    graph["3"]["inputs"]["model"] = ["4", 0]
    with pytest.raises(GraphError, match="`model` comes from 'ModelSamplingFlux', which is no loader"):
        server.run(graph)
    with pytest.raises(GraphError, match="`concept_list` is empty: type the concepts to erase, one per line"):
        server.queue(batch_graph(concept_list=" \n "))
