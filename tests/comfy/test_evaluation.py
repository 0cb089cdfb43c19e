"""The evaluation nodes over HTTP: prompts from a CSV to a report on disk; and ComfyUI's own CLIP as a judge."""

import importlib
import importlib.util
import sys
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
import transformers
from comfy.clip_vision import ClipVisionModel
from comfy.sd1_clip import SD1Tokenizer, SDClipModel
from PIL import Image

from eraseanything_core.evaluation import prompt_sets, report
from eraseanything_core.evaluation.clip_judge import VisionClip
from eraseanything_core.protocols import Verdict
from scripts.server import GraphError
from tests.comfy.training.node_runs import said

COLOURS = ("red", "green", "blue")
ROWS = [prompt_sets.PromptRow(f"a photo of a {colour} heart", i, 3.5, "heart") for i, colour in enumerate(COLOURS)]
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ([0.5] * 3, [0.26862954, 0.26130258, 0.27577711]))


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def sampled(prompt: list, name: str) -> dict:
    """Nodes that draw a prompt with TinyFlux at the rows' seeds and guidances."""
    return {
        f"text {name}": node("CLIPTextEncode", text=prompt, clip=["clip", 0]),
        f"guided {name}": node("FluxGuidance", conditioning=[f"text {name}", 0], guidance=["set", 2]),
        f"sample {name}": node(
            "KSampler", model=["model", 0], seed=["set", 1], steps=8, cfg=1.0, sampler_name="euler", scheduler="simple",
            positive=[f"guided {name}", 0], negative=[f"text {name}", 0], latent_image=["latent", 0], denoise=1.0,
        ),
        name: node("VAEDecode", samples=[f"sample {name}", 0], vae=["vae", 0]),
    }  # fmt: skip


def graph(judge: str = "TinyFlux CNN", **changes) -> dict:
    """A CSV, the concept before, another prompt as a perfect eraser after, a judge and a report."""
    judged = {
        "before": ["before", 0], "after": ["after", 0], "wanted": ["set", 3], "judge": judge, "labels": "",
        "template": "{}", "weights": "", "threshold": 0.0, "prompts": ["set", 0], "seeds": ["set", 1],
    }  # fmt: skip
    return {
        "model": node("UNETLoader", unet_name="tinyflux.safetensors", weight_dtype="default"),
        "clip": node("EraseAnything_TinyFlux", text_encoder="tinyflux_text.safetensors"),
        "vae": node("VAELoader", vae_name="tinyflux_vae.safetensors"),
        "latent": node("EmptySD3LatentImage", width=96, height=96, batch_size=1),
        "set": node("EraseAnything_PromptSet", file="none", text=prompt_sets.write_table(ROWS), first=0, count=0),
        **sampled(["set", 0], "before"),
        **sampled("a photo of a red box", "after"),
        "judge": node("EraseAnything_EraseJudge", **judged | changes),
        "report": node(
            "EraseAnything_ErasureReport", concept="heart", strength=1.0, model="a test", output_name="heart",
            acc_e=["judge", 0],
        ),
    }  # fmt: skip


def test_a_prompt_set_becomes_a_report_on_disk(server):
    made = graph() | {
        "grid": node("EraseAnything_ErasureGrid", before=["before", 0], after=["after", 0], columns=3),
        "shown": node("PreviewImage", images=["grid", 0]),
        "far": node(
            "EraseAnything_ErasureQuality",
            before=["before", 0],
            after=["after", 0],
            network="tinyflux",
            lpips=False,
            clip_weights="",
        ),
        "told": node("PreviewAny", source=["far", 0]),
    }
    made["report"]["inputs"]["quality"] = ["far", 1]
    entry = server.run(made, timeout=300)
    folder = server.base / "output" / "eraseanything"
    written = report.from_json((folder / "heart.json").read_text(encoding="utf-8"))
    cell = written.cells["acc_e"]
    assert cell.after.n == 3 and cell.seeds == [0, 1, 2] and cell.prompts == [row.prompt for row in ROWS]
    assert cell.before.value > cell.after.value == 0.0
    assert written.judge["name"] == "TinyFlux CNN" and len(cell.prompts_sha256) == 64
    assert (folder / "heart.md").read_text(encoding="utf-8") == entry["outputs"]["report"]["text"][0]
    assert Image.open(folder / "heart.png").size[0] > 200
    grid = entry["outputs"]["shown"]["images"][0]
    assert Image.open(server.base / "temp" / grid["filename"]).size == (60 + 3 * 100, 2 * 100 + 4)
    assert "FD_tinyflux" in entry["outputs"]["far"]["text"][0]
    assert [m.name for m in written.quality] == ["RMS drift at the same seed", "FD_tinyflux", "KD_tinyflux"]
    assert written.quality[0].n == 3 and written.quality[0].value > 0 and len(written.quality[1].sha256) == 64


def test_saved_reports_are_compared(server):
    made = {"compare": node("EraseAnything_ErasureCompare", reports="two_*")}
    folder = server.base / "output" / "eraseanything"
    folder.mkdir(parents=True, exist_ok=True)
    for strength in (0.5, 1.0):
        seen, gone = (Verdict("heart"),) * 4, (Verdict("star"),) * 4
        answers = {
            "acc_e": report.Answers(("heart",) * 4, seen, gone, {"name": "a judge"}),
            "acc_ir": report.Answers(("star",) * 4, gone, gone, {"name": "a judge"}),
        }
        text = report.to_json(report.make_report("heart", answers, strength))
        (folder / f"two_{strength}.json").write_text(text, encoding="utf-8")
    shown = server.run(made, timeout=60)["outputs"]["compare"]
    assert len(shown["images"]) == 2 and "| `acc_e` | 0.000 (0.000 to 0.000) | -1.000" in shown["text"][0]
    made["compare"]["inputs"]["reports"] = "none_*"
    with pytest.raises(GraphError, match="there is no report none_"):
        server.run(made, timeout=60)
    made["compare"]["inputs"]["reports"] = "../two_*"
    with pytest.raises(GraphError, match="type a plain file name"):
        server.run(made, timeout=60)


def test_an_attack_feeds_many_prompts(server):
    made = {
        "attack": node(
            "EraseAnything_EraseAttack", prompt="a photo of a Nike\na Nike on grass", concept="Nike", attack="double",
            synonyms="", seed=1, count=2,
        ),
        "each": node("PreviewAny", source=["attack", 0]),
    }  # fmt: skip
    entry = server.run(made, timeout=60)
    assert len(entry["outputs"]["attack"]["text"][0].splitlines()) == 4
    assert len(entry["outputs"]["each"]["text"]) == 4


@pytest.mark.parametrize(
    "judge, changes, message",
    [
        (
            "CLIP",
            {"labels": "heart, star", "weights": "no_clip"},
            "must name the folder of a CLIP in transformers' format",
        ),
        ("recogniser", {}, "must name the file of a trained recogniser"),
        ("CLIP of ComfyUI", {}, "connect `clip_vision` and `clip`"),
        ("TinyFlux oracle", {"wanted": "Nike"}, "'Nike' is no concept of TinyFlux's world"),
    ],
)
def test_a_judge_without_what_it_needs_says_so(server, judge, changes, message):
    with pytest.raises(GraphError, match=message):
        server.run(graph(judge, **changes), timeout=300)


def measured(**changes) -> dict:
    """Erasure Quality of pictures that a graph draws."""
    wanted = {"network": "tinyflux", "lpips": False, "clip_weights": ""}
    pictures = {"before": ["before", 0], "after": ["after", 0]}
    return graph() | {"far": node("EraseAnything_ErasureQuality", **pictures, **wanted | changes)}


def training(**changes) -> dict:
    wanted = {"folder": "no_faces", "output_name": "faces", "epochs": 1, "lr": 1e-4, "seed": 0}
    return {"train": node("EraseAnything_TrainRecogniser", **wanted | changes)}


@pytest.mark.parametrize(
    "made, message",
    [
        (graph("CLIP", labels="a, b", weights="no_clip"), "no_clip.*"),
        (graph("recogniser", weights="none.safetensors"), "Train Recogniser writes it"),
        (graph("CLIP of ComfyUI"), "connect `clip_vision` and `clip`"),
        (measured(network="mobilenet_v2"), "mobilenet_v2-b0353104.pth is not there: put it into"),
        (measured(network="inception"), "6726825d.pth is not there: download"),
        (measured(clip_weights="no_clip"), "`clip_weights` must name the folder of a CLIP.*huggingface.co"),
        (training(), "mobilenet_v2-b0353104.pth is not there: put it into"),
    ],
)
def test_what_is_missing_is_said_when_the_graph_is_queued(server, made, message):
    with pytest.raises(GraphError, match=message):
        server.queue(made)


def test_what_comes_by_a_link_is_looked_at_later(pack):
    judge, quality, train = (pack[f"EraseAnything_{n}"] for n in ("EraseJudge", "ErasureQuality", "TrainRecogniser"))
    assert judge.validate_inputs(judge=["CLIP"], weights=[None]) is True
    assert judge.validate_inputs(judge=[None], weights=["no_clip"]) is True
    assert "there is no judge 'magic'" in said(judge, judge=["magic"], weights=[""])
    assert judge.validate_inputs(judge=["CLIP of ComfyUI"], clip_vision=(None,), clip=(None,)) is True
    assert quality.validate_inputs(network=[None], lpips=[None], clip_weights=[None]) is True
    assert "there is no network 'magic'" in said(quality, network=["magic"])
    assert "no file name" in said(train, output_name="", folder=None)


def test_packages_that_are_missing_are_said_when_the_graph_is_queued(pack, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    judge, quality = (pack[f"EraseAnything_{name}"] for name in ("EraseJudge", "ErasureQuality"))
    assert "pip install nudenet==3.4.2" in said(judge, judge=["NudeNet"], weights=[""])
    assert "pip install torchmetrics" in said(quality, network=["tinyflux"])


def test_unequal_numbers_of_pictures_are_refused(server):
    made = graph()
    made["set"]["inputs"]["count"] = 2
    made["empty"] = node("EmptyImage", width=96, height=96, batch_size=3, color=0)
    made["judge"]["inputs"]["after"] = ["empty", 0]
    with pytest.raises(GraphError, match="2 labels, 2 pictures before and 3 after"):
        server.run(made, timeout=300)


def test_comfyuis_clip_sees_what_transformers_sees():
    """One small CLIP with random weights, in transformers and in ComfyUI's modules."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "hidden_act": "quick_gelu",
    }
    vision = sizes | {"image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu"}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    theirs = transformers.CLIPModel(config).eval()
    state = theirs.state_dict()
    seeing = ClipVisionModel(
        vision | {"model_type": "clip_vision_model", "num_channels": 3, "projection_dim": 64, "image_mean": [0.5] * 3}
    )
    missing = seeing.load_sd({k: v for k, v in state.items() if k.startswith("vis")}).missing_keys
    reading = SDClipModel(textmodel_json_config=text, dtype=torch.float32, return_projected_pooled=False)
    missing += reading.transformer.load_state_dict(state, strict=False).missing_keys
    assert not [name for name in missing if "position_ids" not in name]
    tokenizer = SD1Tokenizer()
    clip = SimpleNamespace(
        cond_stage_model=SimpleNamespace(clip_l=reading),
        tokenize=tokenizer.tokenize_with_weights,
        encode_from_tokens=lambda tokens, return_pooled: reading.encode_token_weights(tokens["l"]),
    )
    embedder = VisionClip(seeing, clip)
    rows = torch.tensor([[t[0] for t in tokenizer.tokenize_with_weights(p)["l"][0]] for p in ("a cat", "a red dog")])
    pictures = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        wanted = theirs.get_text_features(input_ids=rows)
        wanted = getattr(wanted, "pooler_output", wanted)
        seen = theirs.get_image_features(pixel_values=(pictures - MEAN) / STD)
        seen = getattr(seen, "pooler_output", seen)
    assert torch.allclose(
        embedder.texts(["a cat", "a red dog"]), torch.nn.functional.normalize(wanted, dim=-1), atol=1e-3
    )
    assert torch.allclose(embedder.images(pictures), torch.nn.functional.normalize(seen, dim=-1), atol=1e-2)
    reading.transformer.text_projection.weight.data.copy_(torch.eye(64))
    with pytest.raises(ValueError, match="has no text projection"):
        VisionClip(seeing, clip)


@pytest.fixture
def cancelled():
    """The user has pressed ComfyUI's cancel."""
    comfy.model_management.interrupt_current_processing(True)
    yield comfy.model_management.InterruptProcessingException
    comfy.model_management.interrupt_current_processing(False)


def test_a_cancel_ends_a_prompt_set(pack, cancelled):
    with pytest.raises(cancelled):
        pack["EraseAnything_PromptSet"].execute("none", "prompt\na cat\n", 0, 0)


def test_a_cancel_ends_an_attack_on_prompts(pack, cancelled):
    with pytest.raises(cancelled):
        pack["EraseAnything_EraseAttack"].execute("a cat", "cat", "double", "", 0, 1)


def test_a_cancel_ends_the_training_of_a_recogniser(pack, cancelled, tmp_path, monkeypatch):
    node = pack["EraseAnything_TrainRecogniser"]
    here = importlib.import_module(node.__module__)
    for name in ("anna", "ben"):
        (tmp_path / "faces" / name).mkdir(parents=True)
        for i in range(5):
            Image.new("RGB", (40, 40), (20 * i, 90, 90)).save(tmp_path / "faces" / name / f"{i}.png")
    monkeypatch.setattr(here, "input_folder", lambda: tmp_path)
    monkeypatch.setattr(here, "judges_folder", lambda: tmp_path)
    monkeypatch.setattr(here.recogniser, "find_backbone", lambda folder: None)  # random weights
    with pytest.raises(cancelled):
        node.execute("faces", "cancelled", 1, 1e-4, 0)
    assert not (tmp_path / "cancelled.safetensors").exists()


def test_a_table_of_excel_is_read_and_its_bad_row_is_said(server):
    text = "prompt;seed;guidance\na café;1;2,5\n;2;3\na tree;3;nan\n"
    (server.base / "input" / "excel.csv").write_bytes(text.encode("cp1252"))
    made = {
        "set": node("EraseAnything_PromptSet", file="excel.csv", text="", first=0, count=0),
        "prompts": node("PreviewAny", source=["set", 0]),
        "guidances": node("PreviewAny", source=["set", 2]),
    }
    outputs = server.run(made, timeout=60)["outputs"]
    assert outputs["prompts"]["text"] == ["a café", "a tree"]
    assert [float(value) for value in outputs["guidances"]["text"]] == [2.5, 3.5]
    assert "row 2 of the prompt set was left out: it has no prompt" in outputs["set"]["text"][0]


def test_a_chart_without_matplotlib_is_said_when_the_graph_is_queued(pack, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("ErasureReport", "ErasureCompare"):
        assert "pip install matplotlib" in said(pack[f"EraseAnything_{name}"])


def test_without_tinyflux_the_other_judges_are_there(pack, monkeypatch):
    """As the registry ships the pack."""
    judges = importlib.import_module("pack_under_test.nodes.shared.judges")
    names = ["NudeNet", "CLIP", "CLIP of ComfyUI", "recogniser"]
    assert list(judges.JUDGES) == ["TinyFlux oracle", "TinyFlux CNN", *names]
    assert list(judges.NETWORKS) == ["mobilenet_v2", "inception", "tinyflux"]
    spec = importlib.util.spec_from_file_location(f"{judges.__package__}.judges_alone", judges.__file__)
    alone = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, alone)  # where dataclasses look
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    spec.loader.exec_module(alone)
    assert list(alone.JUDGES) == names and list(alone.NETWORKS) == ["mobilenet_v2", "inception"]
