"""The nodes of concepts over HTTP, with a key that must show up nowhere."""

import json
import time
import urllib.error

import pytest
from PIL import Image
from safetensors.torch import load_file

from eraseanything_core.evaluation import report
from eraseanything_core.lora.files import load_lora
from scripts.chat_server import ChatServer, fails, hangs, says
from scripts.erase_settings import UNWATCHED, settings_nodes
from scripts.graph import api_to_ui, inputs_of
from scripts.server import GraphError, GraphInterrupted

KEY = "sk-fake-5e1f-do-not-show-0123456789"
NODE = "EraseAnything_ConceptSampler"
GOOD = {
    "no_relation": [["cloud", 0.1], ["carpet", 0.1]],
    "far": [["hot", 0.3], ["wet", 0.3]],
    "mid": [["image", 0.5], ["figure", 0.6]],
}


@pytest.fixture
def user(server):
    """ComfyUI's folder for what it does not serve; emptied afterwards."""
    folder = server.base / "user" / "__eraseanything"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.fixture
def graph(server):
    """Samples a concept and saves it, and saves a picture, which holds the whole graph in its metadata."""
    values = {"concept": "nude", "category": "auto", "part_of_speech": "auto", "senses": 1, "synonyms": "", "words": 2}
    values |= {"seed": 0, "words_from": "offline", "prompts_from": "templates", "provider": "other", "base_url": ""}
    values |= {"model": "m", "credential": "lab", "timeout": 20}
    return {
        "1": {"class_type": NODE, "inputs": values},
        "2": {"class_type": "EraseAnything_SaveConcepts", "inputs": {"concepts": ["1", 0], "output_name": "nude"}},
        "3": {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 16, "height": 16}},
        "4": {"class_type": "MaskToImage", "inputs": {"mask": ["3", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "secret"}},
    }


def with_model(graph, url):
    changed = json.loads(json.dumps(graph))
    changed["1"]["inputs"] |= {"words_from": "llm", "base_url": url}
    return changed


def store(user, url):
    (user / "credentials.json").write_text(json.dumps({"lab": {"key": KEY, "base_url": url}}))


def everything(server, *texts) -> str:
    """All that a run leaves where somebody could read it."""
    pictures = [path.read_bytes().decode("latin-1") for path in (server.base / "output").rglob("*") if path.is_file()]
    return "\n".join([server.log.read_text(), json.dumps(server.get_json("/history")), *pictures, *texts])


def test_a_key_is_used_and_shown_nowhere(server, user, graph):
    with ChatServer(says(GOOD)) as chat:
        store(user, chat.url)
        asked = with_model(graph, chat.url)
        workflow = json.dumps(api_to_ui(asked, server.object_info()))
        events = []
        entry = server.run(asked, lambda *event: events.append(event), timeout=120)
    assert chat.requests[0]["headers"]["authorization"] == f"Bearer {KEY}"
    assert "mid: image 0.50, figure 0.60" in entry["outputs"]["1"]["text"][0]
    answers = "".join(path.read_text() for path in (user / "answers").iterdir())
    left = everything(server, workflow, json.dumps(asked), json.dumps(events), answers)
    assert "do-not-show" not in left and chat.url in left, "the key was shown, or nothing was looked at"
    (picture,) = (server.base / "output").glob("secret*.png")
    assert chat.url in Image.open(picture).info["prompt"], "the picture does not hold the graph"
    (user / "credentials.json").unlink()
    # Its server is gone by now. Another timeout, as ComfyUI itself would not run the same node twice.
    repeated = with_model(graph, chat.url)
    repeated["1"]["inputs"]["timeout"] = 21
    again = server.run(repeated, timeout=120)["outputs"]["1"]["text"][0]
    assert "mid: image 0.50, figure 0.60" in again and "as it answered before; nothing was sent" in again


@pytest.mark.parametrize(
    "reply, reason",
    [
        (fails(401, f"Incorrect API key provided: {KEY}"), "refuses the credential: check its key"),
        (fails(400, f"the header Authorization: Bearer {KEY} is odd"), r"refuses the question: .*\*\*\*"),
        (says(f"your key is {KEY}"), "gave no usable answer: it holds no complete JSON object"),
    ],
)
def test_a_server_that_repeats_the_key_does_not_get_it_shown(server, user, graph, reply, reason):
    with ChatServer(reply) as chat:
        store(user, chat.url)
        events = []
        with pytest.raises(GraphError, match=reason) as caught:
            server.run(with_model(graph, chat.url), lambda *event: events.append(event), timeout=120)
    assert "do-not-show" not in everything(server, str(caught.value), json.dumps(events))


def test_a_server_that_hangs_is_left_when_the_user_stops(server, user, graph):
    asked = with_model(graph, "")
    with ChatServer(hangs) as chat:
        store(user, chat.url)
        asked["1"]["inputs"] |= {"base_url": chat.url, "timeout": 600}
        prompt = server.queue(asked)
        end = time.monotonic() + 120
        while not chat.requests and time.monotonic() < end:
            time.sleep(0.05)
        server.interrupt()
        with pytest.raises(GraphInterrupted):
            server.wait(prompt, timeout=60)


def test_an_attack_takes_the_synonyms_of_the_set(server, graph):
    attack = {"prompt": "a nude man", "concept": "", "attack": "synonym", "synonyms": "", "seed": 0, "count": 8}
    asked = {"1": graph["1"]} | {
        "2": {"class_type": "EraseAnything_EraseAttack", "inputs": attack | {"concepts": ["1", 0]}}
    }
    made = set(server.run(asked, timeout=120)["outputs"]["2"]["text"][0].splitlines())
    words = ("bare", "au naturel", "naked", "nudity", "nudeness")
    assert len(made) > 2 and made <= {f"a {word} man" for word in words}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def filled(server, name: str, **inputs) -> dict:
    """A node of the pack with its defaults, and what is given."""
    entries = inputs_of(f"EraseAnything_{name}", server.object_info())
    return node(f"EraseAnything_{name}", **{e.name: e.default() for e in entries if e.is_widget} | inputs)


def drawn(model: str, name: str) -> dict:
    """Nodes that draw the rows of the prompt set with a model, in two steps."""
    return {
        f"sample {name}": node(
            "KSampler", model=[model, 0], seed=["set", 1], steps=2, cfg=1.0, sampler_name="euler", scheduler="simple",
            positive=["text", 0], negative=["text", 0], latent_image=["latent", 0], denoise=1.0,
        ),
        name: node("VAEDecode", samples=[f"sample {name}", 0], vae=["vae", 0]),
    }  # fmt: skip


def from_a_word_to_its_report(server) -> dict:
    """ConceptSampler and no other word: trained, saved, attacked, drawn before and after, judged, reported."""
    small = {"width": 96, "height": 96, "steps": 2, "sampling_steps": 2, "cached_trajectories": 1}
    settings, link = settings_nodes("small", small | UNWATCHED)
    flux, concepts, target = {"model": ["model", 0], "clip": ["clip", 0]}, {"concepts": ["words", 0]}, {"steps": 1}
    target |= flux | concepts | {"lora": ["erase", 1], "latent": ["latent", 0], "prompt": "a photo of fish"}
    return settings | {
        "words": filled(server, "ConceptSampler", concept="fish", words_from="offline", synonyms="trout"),
        "model": node("UNETLoader", unet_name="tinyflux.safetensors", weight_dtype="default"),
        "clip": node("EraseAnything_TinyFlux", text_encoder="tinyflux_text.safetensors"),
        "vae": node("VAELoader", vae_name="tinyflux_vae.safetensors"),
        "latent": node("EmptySD3LatentImage", width=96, height=96, batch_size=1),
        "erase": filled(
            server, "EraseTrainer", **flux, **concepts, vae=["vae", 0], settings=link, output_name="by_a_word"
        ),
        "save": node("SaveLoRA", lora=["erase", 1], prefix="loras/by_a_word"),
        "set": filled(server, "PromptSet", **concepts, count=2),
        "text": node("CLIPTextEncode", text=["set", 0], clip=["clip", 0]),
        **drawn("model", "before"),
        **drawn("erase", "after"),
        "attack": filled(server, "EraseAttack", **concepts, prompt=["set", 0], attack="synonym"),
        "breed": filled(
            server, "GeneticAttack", **concepts, clip=["clip", 0], population=8, generations=2, words=3, forbidden="sea"
        ),
        "invert": filled(server, "InversionAttack", **target),
        "relearn": filled(server, "RelearnAttack", **target),
        "told": node("PreviewAny", source=["relearn", 0]),
        "held": node("PreviewAny", source=["invert", 0]),
        "judge": filled(
            server, "EraseJudge", **concepts, before=["before", 0], after=["after", 0], judge="TinyFlux CNN",
            prompts=["set", 0], seeds=["set", 1],
        ),
        "report": filled(server, "ErasureReport", **concepts, acc_e=["judge", 0], output_name="by_a_word"),
    }  # fmt: skip


def test_a_word_is_trained_on_attacked_and_judged_in_one_graph(server):
    shown = server.run(from_a_word_to_its_report(server), timeout=600)["outputs"]
    assert "synonyms: trout" in shown["words"]["text"][0]
    tensors, header = load_lora(server.base / "models" / "loras" / "by_a_word.safetensors")
    (saved,) = (server.base / "output" / "loras").glob("by_a_word*.safetensors")
    assert load_file(saved).keys() == tensors.keys()
    assert header["eraseanything.concept"] == "fish" and "trout" in json.loads(header["eraseanything.synonyms"])
    assert [len(tier) for tier in json.loads(header["eraseanything.tiers"])] == [4, 4, 4]
    prompts = ["a photo of a fish", "an image of a fish"]
    assert set(shown["attack"]["text"]) <= {prompt.replace("fish", "trout") for prompt in prompts} | {
        prompt.replace("fish", "fishes") for prompt in prompts
    }
    bred = shown["breed"]["text"][0].splitlines()[0]
    assert len(bred.split()) == 3 and not any(word in bred for word in ("fish", "trout", "sea"))
    written = report.from_json((server.base / "output" / "eraseanything" / "by_a_word.json").read_text("utf-8"))
    assert written.concept == "fish" and written.cells["acc_e"].prompts == prompts
    assert set(written.cells["acc_e"].labels) >= {"fish"} and written.cells["acc_e"].after.n == 2


def test_a_workflow_cannot_send_the_key_elsewhere(server, user, graph):
    with ChatServer(says(GOOD)) as chat:
        store(user, "https://api.openai.com/v1")
        with pytest.raises(GraphError, match="'lab' is for https://api.openai.com:443: it is not sent to http://127"):
            server.run(with_model(graph, chat.url), timeout=120)
    assert not chat.requests and "do-not-show" not in everything(server)


def test_a_key_in_the_graph_is_refused_before_it_is_queued(server, graph):
    for change in ({"credential": KEY}, {"base_url": f"https://user:{KEY}@host/v1"}):
        asked = {**graph, "1": {"class_type": NODE, "inputs": graph["1"]["inputs"] | change}}
        with pytest.raises(GraphError, match="short name|must hold no user, password"):
            server.queue(asked)
    assert "do-not-show" not in server.log.read_text()


def test_comfyui_does_not_serve_the_credentials(server, user):
    store(user, "https://api.openai.com/v1")
    for path in (
        "/userdata/..%2F__eraseanything%2Fcredentials.json",
        "/view?filename=credentials.json&subfolder=../user/__eraseanything",
    ):
        with pytest.raises(urllib.error.HTTPError):
            server.get(path)


def test_offline_a_set_is_made_saved_edited_and_loaded(server, user, graph):
    entry = server.run(graph, timeout=120)
    text = entry["outputs"]["1"]["text"][0]
    assert "synonyms: bare, au naturel, naked" in text and "nothing was sent" in text
    path = server.base / "output" / "concepts" / "nude.json"
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["concept"] == "nude" and len(saved["irrelevant"]["mid"]) == 2
    load = {"1": {"class_type": "EraseAnything_LoadConcepts", "inputs": {"source": "nude"}}}
    assert server.run(load, timeout=60)["outputs"]["1"]["text"][0] == text
    path.write_text(json.dumps(saved | {"synonyms": ["undressed"]}), encoding="utf-8")
    assert "synonyms: undressed" in server.run(load, timeout=60)["outputs"]["1"]["text"][0], (
        "an edited file is read anew"
    )
    path.write_text(json.dumps(saved | {"synonyms": "undressed"}), encoding="utf-8")
    with pytest.raises(GraphError, match="synonyms must be a list of texts"):
        server.queue(load)
    typed = {"1": {"class_type": "EraseAnything_LoadConcepts", "inputs": {"source": json.dumps({"concept": "cat"})}}}
    assert "cat (entity)" in server.run(typed, timeout=60)["outputs"]["1"]["text"][0]


def test_ready_sets_and_saved_ones_are_listed_and_loaded(server, user, graph):
    server.run(graph, timeout=120)
    listed = json.loads(server.get("/object_info/EraseAnything_LoadConcepts"))["EraseAnything_LoadConcepts"]
    options = listed["input"]["optional"]["choice"][1]["options"]
    assert options[0] == "source" and {"ready: nudity", "ready: blurred_background", "saved: nude"} <= set(options)
    shown = {"ready: blurred_background": "nobody asks for: {}, blurred background", "saved: nude": "nude (entity)"}
    tooltip = listed["input"]["optional"]["choice"][1]["tooltip"]
    for choice, text in shown.items():
        load = {"1": {"class_type": "EraseAnything_LoadConcepts", "inputs": {"source": "", "choice": choice}}}
        told = server.run(load, timeout=60)["outputs"]["1"]["text"][0]
        assert text in told
        # What a ready set does is told before it is run, and then first.
        sentence = "Backgrounds are as sharp as what stands before them, in prompts that ask for no blur."
        is_ready = choice.startswith("ready")
        assert told.startswith(f"what it does: {sentence}\n") == is_ready == ("source: the pack" in told)
        assert f"blurred_background: {sentence}" in tooltip.splitlines()
    load["1"]["inputs"]["choice"] = "ready: ../known_words"
    with pytest.raises(GraphError, match="no ready set of that name"):
        server.queue(load)


def test_a_large_set_does_not_hold_up_the_server(server):
    """ComfyUI validates inputs in its event loop: while it does, it answers nobody."""
    words = [f"red fox {i}" for i in range(600)]
    kept = [f"a red fox {i} in the snow" for i in range(600, 1200)]
    source = json.dumps({"concept": "fox 1200", "synonyms": words, "retain": kept})
    load = {"1": {"class_type": "EraseAnything_LoadConcepts", "inputs": {"source": source}}}
    begin = time.monotonic()
    prompt = server.queue(load)
    assert time.monotonic() - begin < 2
    server.wait(prompt, timeout=60)
    too_many = json.dumps({"concept": "cat", "retain": ["a dog"] * 6_000})
    load["1"]["inputs"]["source"] = too_many
    with pytest.raises(GraphError, match="retain has 6,000 entries: shorten it to 5,000"):
        server.queue(load)
