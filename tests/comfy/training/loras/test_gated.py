"""Prompt-gated erasers on TinyFlux: each conditioning that is sampled opens its own gates, however rows are joined."""

import json
import sys

import comfy.hooks
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import nodes
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg

from eraseanything_core.comfy_bridge.training_session import training_session
from eraseanything_core.lora.files import load_lora, save_lora
from tests.comfy.training.loras.cases import ROOT, chosen, execute

WEIGHTS = ROOT / "eraseanything_core" / "tinyflux" / "weights"
STAR, TREE = "a red star", "a green tree on a white background"
ROUNDING = 1e-5  # in float32: another size of the batch adds in another order


@pytest.fixture(scope="module")
def tiny():
    """TinyFlux in float32."""
    return comfy.sd.load_diffusion_model(str(WEIGHTS / "tinyflux.safetensors"), model_options={"dtype": torch.float32})


@pytest.fixture(scope="module")
def text(pack):
    module = pack["TinyFlux"].__module__
    state = comfy.utils.load_torch_file(str(WEIGHTS / "tinyflux_text.safetensors"))
    return comfy.sd.CLIP(sys.modules[module].Target(state), state_dict=state)


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """A loras folder for all tests, since reading the gates takes a while."""
    folder = tmp_path_factory.mktemp("loras")
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors"}))
        yield folder


@pytest.fixture(scope="module")
def star(tiny, loras):
    """An eraser of the star, which changes more than any rounding; its header is one of the trainer's."""
    with training_session(tiny) as model:
        made = model.attach("dual_qkv", 8, torch.Generator().manual_seed(0))
    for i, up in enumerate(made.up):
        up.data.normal_(0, 0.05, generator=torch.Generator().manual_seed(i))
    others = ["ball", "box", "heart", "moon", "cross", "ring", "house", "tree", "fish"]
    told = {"concept": "star", "synonyms": '["pentagram", "asterisk"]', "irrelevant": json.dumps(others)}
    save_lora(
        made.tensors(torch.float32),
        loras / "star.safetensors",
        {f"eraseanything.{key}": value for key, value in told.items()},
    )
    return "star.safetensors"


@pytest.fixture(scope="module")
def gated(pack, tiny, text, star):
    values = {"model": tiny, "clip": text, "mode": "prompt-gated", "weights": "1", "preserve": "", "concepts": ""}
    numbers = {"rank": 0, "energy": 1.0, "density": 0.5, "seed": 0}
    return execute(pack["MultiEraseLoRA"], values | numbers | chosen(star)).args[0]


@pytest.fixture(scope="module")
def always(tiny, star):
    """The eraser in the weights, on for every row."""
    return nodes.LoraLoader().load_lora(tiny, None, star, 1.0, 0)[0]


@pytest.fixture(scope="module")
def encode(text):
    def encoded(prompt):
        with torch.inference_mode():
            return nodes.CLIPTextEncode().encode(text, prompt)[0]

    return encoded


def sample(model, positive, negative, cfg=1.0, batch=1, steps=4, **more):
    settings = {"sampler_name": "euler", "scheduler": "simple", "seed": 3} | more
    latent = {"samples": torch.zeros(batch, 16, 12, 12)}
    with torch.inference_mode():
        made = nodes.KSampler().sample(
            model,
            steps=steps,
            cfg=cfg,
            positive=positive,
            negative=negative,
            latent_image=latent,
            **settings,
        )
    return made[0]["samples"]


def difference(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.fixture(scope="module")
def hooked(loras, star):
    """A conditioning that ComfyUI's own hooks draw with the eraser, whatever it is joined with."""
    tensors, _ = load_lora(loras / star)
    hook = comfy.hooks.create_hook_lora(lora=tensors, strength_model=1.0, strength_clip=0.0)

    def with_hook(conditioning):
        return comfy.hooks.set_hooks_for_conditioning(conditioning, hook)

    return with_hook


def combined(first, second):
    return nodes.ConditioningCombine().combine(first, second)[0]


def in_turn(first, second):
    early = nodes.ConditioningSetTimestepRange().set_range(first, 0.0, 0.9)[0]
    late = nodes.ConditioningSetTimestepRange().set_range(second, 0.9, 1.0)[0]
    return combined(early, late)


def side_by_side(first, second):
    left = nodes.ConditioningSetArea().append(first, 48, 96, 0, 0, 1.0)[0]
    right = nodes.ConditioningSetArea().append(second, 48, 96, 48, 0, 1.0)[0]
    return combined(left, right)


def masked(first, second):
    mask = torch.zeros(1, 96, 96)
    mask[:, :48] = 1.0
    top = nodes.ConditioningSetMask().append(first, mask, "default", 1.0)[0]
    bottom = nodes.ConditioningSetMask().append(second, 1 - mask, "mask bounds", 1.0)[0]
    return combined(top, bottom)


JOINED = (combined, in_turn, side_by_side, masked)


@pytest.mark.parametrize("cfg", (1.0, 2.5))
@pytest.mark.parametrize("join", JOINED)
def test_every_joined_row_has_its_own_gate(join, cfg, tiny, gated, hooked, encode):
    """As if ComfyUI's own hooks had the eraser on the rows with the star alone, in both orders."""
    star, tree, ball = encode(STAR), encode(TREE), encode("a red ball")
    # In the same areas: where there is none, ComfyUI copies the positive row with its hook.
    negative = join(ball, ball)
    made = sample(gated, join(star, tree), negative, cfg)
    assert difference(made, sample(tiny, join(hooked(star), tree), negative, cfg)) < ROUNDING
    assert difference(made, sample(tiny, join(star, tree), negative, cfg)) > 0.01, "and the eraser does something"
    swapped = sample(gated, join(tree, star), negative, cfg)
    assert difference(swapped, sample(tiny, join(tree, hooked(star)), negative, cfg)) < ROUNDING


def test_the_concept_alone_is_erased_as_by_the_eraser_in_the_weights(gated, always, tiny, encode):
    star, empty = encode(STAR), encode("")
    made = sample(gated, star, empty)
    assert difference(made, sample(always, star, empty)) < ROUNDING
    assert difference(made, sample(tiny, star, empty)) > 0.01


@pytest.mark.parametrize("cfg", (1.0, 2.5))
@pytest.mark.parametrize("prompt", (TREE, "", "a photo of a blue ball", "a heart beside a moon"))
def test_other_prompts_are_drawn_by_the_original_model(gated, tiny, encode, prompt, cfg):
    """Bit for bit; and a negative prompt is free, also to name the concept."""
    for negative in (encode("a green fish"), encode(STAR)):
        assert torch.equal(sample(gated, encode(prompt), negative, cfg), sample(tiny, encode(prompt), negative, cfg))


def test_a_negative_with_the_concept_is_not_erased_in_areas(gated, tiny, hooked, encode):
    """ComfyUI copies negative rows into the areas of positive ones, and the other way round."""
    star, tree, negative = encode(STAR), encode(TREE), encode("a yellow star")
    made = sample(gated, side_by_side(star, tree), negative, 2.5)
    copied = combined(negative, side_by_side(negative, negative))
    assert difference(made, sample(tiny, side_by_side(hooked(star), tree), copied, 2.5)) < ROUNDING
    split = side_by_side(encode("a yellow star"), encode("a blue box"))
    assert torch.equal(sample(gated, tree, split, 2.5), sample(tiny, tree, split, 2.5))


@pytest.mark.parametrize("sampler", ("heun", "dpmpp_2m", "euler_cfg_pp"))
def test_samplers_and_batches(gated, tiny, hooked, encode, sampler):
    star, tree, empty = encode(STAR), encode(TREE), encode("")
    more = {"cfg": 2.0, "batch": 2, "sampler_name": sampler}
    made = sample(gated, combined(star, tree), empty, **more)
    assert difference(made, sample(tiny, combined(hooked(star), tree), empty, **more)) < ROUNDING
    assert torch.equal(sample(gated, tree, empty, **more), sample(tiny, tree, empty, **more))


def test_one_model_samples_again_and_again(gated, tiny, always, encode):
    """Nothing of one sampling stays for the next one, also not after an error or on a clone."""
    star, tree, empty = encode(STAR), encode(TREE), encode("")
    first = sample(gated, star, empty)
    with pytest.raises(ValueError, match="no text states"):
        sample(gated, [[None, {"pooled_output": star[0][1]["pooled_output"]}]], empty)
    assert torch.equal(sample(gated, tree, empty), sample(tiny, tree, empty))
    assert torch.equal(sample(gated.clone(), star, empty), first)


def test_texts_that_are_joined_or_mixed(gated, always, tiny, encode):
    """One row of two texts is erased as a whole where one of them names the concept."""
    star, tree, empty = encode(STAR), encode(TREE), encode("")
    for rows in (
        nodes.ConditioningConcat().concat(tree, star)[0],
        nodes.ConditioningConcat().concat(star, tree)[0],
    ):
        assert difference(sample(gated, rows, empty), sample(always, rows, empty)) < ROUNDING
    mixed = nodes.ConditioningAverage().addWeighted(star, tree, 0.7)[0]
    erased, plain = sample(always, mixed, empty), sample(tiny, mixed, empty)
    assert difference(sample(gated, mixed, empty), erased) < 0.2 * difference(plain, erased)
    both = nodes.ConditioningConcat().concat(tree, encode("a blue box"))[0]
    assert torch.equal(sample(gated, both, empty), sample(tiny, both, empty))


def guided(guider, *conditionings):
    guider.set_conds(*conditionings)
    noise = torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(5))
    sampler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor([1.0, 0.6, 0.2, 0.0]), seed=0)


def test_guiders_with_more_than_two_prompts(gated, tiny, hooked, encode):
    """The middle prompt of DualCFGGuider is drawn; the empty one of PerpNegGuider is subtracted."""

    def dual(model, *conditionings):
        guider = Guider_DualCFG(model)
        guider.set_cfg(2.0, 2.0)
        return guided(guider, *conditionings)

    def perpendicular(model, *conditionings):
        guider = Guider_PerpNeg(model)
        guider.set_cfg(2.0, 1.0)
        return guided(guider, *conditionings)

    star, tree, empty = encode(STAR), encode(TREE), encode("")
    assert difference(dual(gated, tree, star, empty), dual(tiny, tree, hooked(star), empty)) < ROUNDING
    assert torch.equal(dual(gated, tree, empty, star), dual(tiny, tree, empty, star))
    assert torch.equal(perpendicular(gated, tree, empty, star), perpendicular(tiny, tree, empty, star))
    assert (
        difference(perpendicular(gated, star, tree, empty), perpendicular(tiny, hooked(star), tree, empty)) < ROUNDING
    )


def test_what_cannot_be_gated_is_refused(gated, encode):
    star, empty = encode(STAR), encode("")
    nothing = [[None, {"pooled_output": star[0][1]["pooled_output"]}]]
    wide = [[torch.zeros(1, 32, 64), star[0][1]]]
    for rows, words in (
        (nothing, "a positive conditioning has no text states"),
        (combined(star, nothing), "a positive conditioning has no text states"),
        (wide, "has 64 features a token and the CLIP of Multi Erase LoRA makes 128"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            sample(gated, rows, empty)
        assert "\n" not in str(caught.value)


def test_gates_of_two_nodes_add_up(pack, gated, tiny, text, encode, star, loras):
    """The second node's model has both erasers, each where it is meant."""
    tensors, header = load_lora(loras / star)
    header |= {"eraseanything.concept": "tree", "eraseanything.synonyms": '["pine", "fir"]'}
    header["eraseanything.irrelevant"] = json.dumps(["ball", "box", "heart", "moon", "cross", "ring", "house", "star"])
    save_lora({key: -tensor for key, tensor in tensors.items()}, loras / "tree.safetensors", header)
    values = {"clip": text, "mode": "prompt-gated", "weights": "1", "preserve": "", "concepts": ""}
    values |= {"rank": 0, "energy": 1.0, "density": 0.5, "seed": 0}
    node, empty = pack["MultiEraseLoRA"], encode("")
    chain = execute(node, values | {"model": gated} | chosen("tree.safetensors")).args[0]
    one = execute(node, values | {"model": tiny} | chosen(star, "tree.safetensors")).args[0]
    for prompt in (STAR, TREE, "a red star beside a green tree", "a blue box"):
        assert difference(sample(chain, encode(prompt), empty, 2.0), sample(one, encode(prompt), empty, 2.0)) < ROUNDING
    assert torch.equal(sample(chain, encode(STAR), empty, 2.0), sample(gated, encode(STAR), empty, 2.0))
