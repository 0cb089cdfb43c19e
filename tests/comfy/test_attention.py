"""AttentionProbe and AttentionErase on TinyFlux, with ComfyUI's own loaders and samplers."""

import json

import comfy.sample
import comfy.sd
import pytest
import torch

from lab.tinyflux.pipeline import WEIGHTS
from scripts.graph import ui_to_api
from scripts.workflows.template import WORKFLOWS

PROMPT = "a red (star:1.2) above two stars"


@pytest.fixture(scope="module")
def model():
    return comfy.sd.load_diffusion_model(str(WEIGHTS / "tinyflux.safetensors"))


@pytest.fixture(scope="module")
def clip(pack):
    return pack["EraseAnything_TinyFlux"].PREPARE_CLASS_CLONE(None).execute("tinyflux_text.safetensors").args[0]


@pytest.fixture
def run(pack, model, clip):
    """A node with its defaults."""

    def execute(name, **values):
        node = pack[f"EraseAnything_{name}"]
        given = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
        if name != "AttentionMaps":
            given |= {"model": model, "clip": clip, "prompt": PROMPT, "concept": "star"}
        with torch.inference_mode():
            return node.PREPARE_CLASS_CLONE(None).execute(**given | values).args

    return execute


def encode(clip, text):
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sample(model, positive, negative, cfg=1.0, steps=3, size=(12, 16), sampler="euler", batch=2):
    noise = torch.randn(batch, 16, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, "simple", positive, negative, torch.zeros_like(noise), disable_pbar=True
        )


def explicit(q, k, v, heads, mask=None, **_):
    """The full softmax, with what a test did to it."""
    logits = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = torch.softmax(logits if mask is None else logits + mask[:, None], dim=-1)
    explicit.seen.append(weights)
    return (explicit.change(weights) @ v.float()).to(v).transpose(1, 2).flatten(2)


def with_explicit(model, change=lambda w: w):
    """The model with its attention computed as a full softmax by another pack's override."""
    explicit.seen, explicit.change = [], change
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = lambda _, *args, **rest: explicit(
        *args, **rest
    )
    return clone


def test_the_probe_leaves_the_image_as_it_is(run, model, clip):
    negative = encode(clip, "a blue ball")
    plain = sample(model, encode(clip, PROMPT), negative, cfg=2.0)
    probed, positive, *_ = run("AttentionProbe", blocks="all")
    assert torch.equal(sample(probed, positive, negative, cfg=2.0), plain)
    assert torch.equal(sample(model, positive, negative, cfg=2.0), plain), "the caller's MODEL has changed"


def test_the_maps_are_the_columns_of_the_full_softmax(run, model, clip):
    probed, positive, probe, tokens = run(
        "AttentionProbe", model=with_explicit(model), concept="star, red", blocks="all"
    )
    recording = probe.recording(sample(probed, positive, encode(clip, "a blue ball"), cfg=2.0, steps=2))
    words = ["".join(recording.pieces[i] for i in places) for places in recording.spans.values()]
    assert words == ["▁star▁stars", "▁red"] and "star: tokens" in tokens
    assert recording.grid == (6, 8) and len(explicit.seen) == 2 * 6
    text = explicit.seen[0].shape[-1] - 48
    rows = [w[probe.probe.rows, :, text:] for w in explicit.seen]  # those of the positive prompt
    assert len(probe.probe.rows) == 2 < len(explicit.seen[0])
    for column, places in enumerate(recording.spans.values()):
        expected = torch.stack([w[..., places].sum(-1).mean(1) for w in rows]).mean(0)
        assert (recording.maps["all"]["all"][..., column] - expected).abs().max() < 1e-5
    for place, share in recording.shares.items():
        assert abs(share - float(torch.stack([w[..., place].mean() for w in rows]).mean())) < 1e-5
    assert list(recording.maps["block"]) == ["dual 0", "dual 1", "single 0", "single 1", "single 2", "single 3"]
    for view, count in {"block": 6, "step": 2, "head": 2}.items():
        assert len(recording.maps[view]) == count
        mean = sum(recording.maps[view].values()) / count
        assert torch.allclose(mean, recording.maps["all"]["all"], atol=1e-6)


def masked(conditioning, size=(6, 8)):
    """As Flux Redux does with a strength of its image: the image's queries see the text less."""
    text, tokens = conditioning[0][0].shape[1], size[0] * size[1]
    mask = torch.zeros(1, text + tokens, text + tokens)
    mask[:, text:, : text // 2] = -2.0
    more = {"attention_mask": mask, "attention_mask_img_shape": size}
    return [[context, entry | more] for context, entry in conditioning]


def test_the_maps_are_those_of_an_attention_with_a_mask(run, model):
    probed, positive, probe, _ = run("AttentionProbe", model=with_explicit(model), blocks="all")
    plain = probe.recording(sample(probed, positive, positive, steps=1)).maps["all"]["all"]
    explicit.seen.clear()
    recording = probe.recording(sample(probed, masked(positive), masked(positive), steps=1))
    expected = torch.stack([w[:, :, -48:, recording.spans["star"]].sum(-1).mean(1) for w in explicit.seen]).mean(0)
    found = recording.maps["all"]["all"][..., 0]
    assert (found - expected).abs().max() < 1e-5 < (plain[..., 0] - expected).abs().max() / 10


def test_blocks_heads_and_steps_are_chosen(run, clip):
    probed, positive, probe, _ = run("AttentionProbe", blocks="dual 1, single 0-1", heads="1", start=0.5)
    recording = probe.recording(sample(probed, positive, positive, steps=4))
    assert list(recording.maps["block"]) == ["dual 1", "single 0", "single 1"]
    assert list(recording.maps["head"]) == ["head 1"] and [s[:6] for s in recording.maps["step"]] == [
        "step 3",
        "step 4",
    ]


def test_the_reader_shows_every_concept_in_every_image(run, clip):
    probed, positive, probe, _ = run("AttentionProbe", concept="star, red")
    samples = {"samples": sample(probed, positive, positive)}
    image = torch.rand(2, 96, 128, 3)
    maps, masks, shares, table = run("AttentionMaps", attention=probe, samples=samples, image=image)
    assert len(maps) == 4 and maps.shape[1] >= 512 and maps.shape[3] == 3
    assert masks.shape == (4, 96, 128) and masks.amin() == 0 and masks.amax() == 1
    assert shares.shape[2] == 512 and "_star" in table
    hard = run("AttentionMaps", attention=probe, samples=samples, threshold=0.5)[1]
    assert torch.equal(hard, (masks >= 0.5).float())
    assert run("AttentionMaps", attention=probe, samples=samples, split="block")[0].shape[0] == 4


def test_maps_of_another_sampling_are_not_shown(run, clip):
    probed, positive, probe, _ = run("AttentionProbe")
    first, second = (sample(probed, positive, positive, steps=steps) for steps in (1, 2))
    assert probe.recording(first) is not probe.recording(second)
    with pytest.raises(ValueError, match="not made with this probe's model"):
        run("AttentionMaps", attention=probe, samples={"samples": second + 1})
    with pytest.raises(ValueError, match="1 images for 2 samples"):
        run("AttentionMaps", attention=probe, samples={"samples": second}, image=torch.rand(1, 96, 128, 3))


def test_strength_one_changes_no_bit(run, model, clip):
    erased, positive, _ = run("AttentionErase", strength=1.0, blocks="all", renormalise=True)
    assert torch.equal(sample(erased, positive, positive), sample(model, positive, positive))


@pytest.mark.parametrize("queries", ["all", "image"])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_erasing_is_the_explicit_softmax_with_scaled_columns(run, model, strength, renormalise, queries):
    _, positive, probe, _ = run("AttentionProbe")
    places, text = probe.prompt.spans["star"], positive[0][0].shape[1]

    def change(weights):
        weights = weights.clone()
        rows = slice(text, None) if queries == "image" else slice(None)
        part = weights[:, :, rows]
        part[..., places] *= strength
        weights[:, :, rows] = part / part.sum(-1, keepdim=True) if renormalise else part
        return weights

    erased = run("AttentionErase", strength=strength, blocks="all", renormalise=renormalise, queries=queries)[0]
    for given in (positive, masked(positive)):
        expected = sample(with_explicit(model, change), given, given)
        plain, found = sample(model, given, given), sample(erased, given, given)
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max() and (plain - expected).abs().max() > 1


def test_other_overrides_and_a_second_eraser_take_part(run, model):
    wide = with_explicit(model)
    erased, positive, _ = run("AttentionErase", model=wide)
    plain = sample(wide, positive, positive)
    explicit.seen.clear()
    one = sample(erased, positive, positive)
    assert len(explicit.seen) == 3 * 6, "the other pack's override was left out"
    both = sample(run("AttentionErase", model=erased, concept="red")[0], positive, positive)
    together = sample(run("AttentionErase", model=wide, concept="star, red")[0], positive, positive)
    assert not torch.equal(one, plain) and torch.allclose(both, together, atol=1e-4)


def test_a_lora_before_it_stays_in_effect(run, model):
    torch.manual_seed(0)
    name = "transformer.transformer_blocks.1.attn.add_k_proj.lora_"
    lora = {name + "A.weight": torch.randn(8, 256), name + "B.weight": torch.randn(256, 8)}
    adapted = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
    kept, positive, _ = run("AttentionErase", model=adapted, strength=1.0)
    with_lora = sample(kept, positive, positive)
    assert torch.equal(with_lora, sample(adapted, positive, positive))
    assert not torch.equal(with_lora, sample(model, positive, positive))
    erased = sample(run("AttentionErase", model=adapted)[0], positive, positive)
    without = sample(run("AttentionErase")[0], positive, positive)
    assert not torch.equal(erased, with_lora) and not torch.equal(erased, without)


def test_only_the_prompt_and_the_range_are_touched(run, model, clip):
    erased, positive, _ = run("AttentionErase")
    negative = encode(clip, "a star")
    moved = sample(erased, positive, negative, cfg=1.0), sample(model, positive, negative, cfg=1.0)
    assert not torch.equal(*moved)
    late = run("AttentionErase", start=0.9)[0]  # after the last of three steps
    assert torch.equal(sample(late, positive, negative), sample(model, positive, negative))


def test_a_prompt_that_is_not_sampled_is_an_error(run, clip):
    for name in ("AttentionErase", "AttentionProbe"):
        patched = run(name)[0]
        with pytest.raises(ValueError, match="the sampled prompt is not the one"):
            sample(patched, encode(clip, "a star"), encode(clip, ""))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"concept": "cat"}, "'cat'; its words are: a, red, star, above, two, stars"),
        ({"concept": " "}, "the concept is empty"),
        ({"blocks": "triple"}, "'triple' is no choice of blocks"),
        ({"blocks": "dual 7"}, "has 2 dual and 4 single blocks"),
        ({"start": 0.5, "end": 0.5}, "is not before end"),
    ],
)
def test_bad_input_is_refused(run, values, words):
    for name in ("AttentionErase", "AttentionProbe"):
        with pytest.raises(ValueError, match=words):
            run(name, **values)


def test_fuzzy_says_what_it_took(run):
    tokens = run("AttentionErase", prompt="a red starrs on a mint background", fuzzy=True)[2]
    assert "'starrs'" in tokens and "spelt otherwise" in tokens


@pytest.mark.parametrize(
    "name, shown, concept",
    [("tinyflux_probe", "AttentionMaps", "moon"), ("tinyflux_attention_erase", "PreviewImage", "star")],
)
def test_the_shipped_graphs_run(server, name, shown, concept):
    graph = ui_to_api(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")), server.object_info())
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["steps"] = 2
    outputs = server.run(graph, timeout=240)["outputs"]
    pictures = [
        images["images"]
        for key, images in outputs.items()
        if graph[key]["class_type"] in (shown, f"EraseAnything_{shown}")
    ]
    assert pictures and all(len(p) == 4 for p in pictures)
    for key, node in graph.items():
        if node["class_type"].startswith("EraseAnything_Attention"):
            assert concept in outputs[key]["text"][0]
