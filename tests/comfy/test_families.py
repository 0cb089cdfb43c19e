"""AttentionErase on small random models of ComfyUI's other families, against a full softmax with scaled columns."""

from types import SimpleNamespace

import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch

from tests.comfy.tiny import new_clip, new_model

SIZES = {name: (16, 12, 16) for name in ("SD3", "Chroma", "Lumina2")}  # of the latents
SIZES |= {name: (16, 1, 12, 16) for name in ("QwenImage", "WAN21_T2V")}
EXPLAINED = ("SD15", "SDXL", "SD3", "Chroma", "QwenImage", "Lumina2", "AuraFlow", "WAN21_T2V")
WIDTHS = {"SD15": 16, "SDXL": 32, "SD3": 4096}
TOKENS, PLACES = 21, [4, 5, 9]  # of a made-up context
JOINT = {  # first text key, first image query, keys; the image has 48 tokens
    "SD3": (0, 21, 69), "Chroma": (0, 21, 69), "QwenImage": (0, 21, 69), "Lumina2": (0, 24, 72),
    "AuraFlow": (8, 29, 77),
}  # fmt: skip
ATTENTIONS = {"SD15": 10, "SDXL": 7, "SD3": 3, "Chroma": 4, "QwenImage": 2, "Lumina2": 2, "AuraFlow": 3, "WAN21_T2V": 2}


@pytest.fixture(scope="module")
def core(pack):
    """The pack's modules that the node is made of."""
    from pack_under_test.eraseanything_core import flux, hooks
    from pack_under_test.eraseanything_core.attention import Blocks
    from pack_under_test.eraseanything_core.methods.attention_map import MapErasure
    from pack_under_test.nodes.attention import hooked

    return SimpleNamespace(flux=flux, hooks=hooks, Blocks=Blocks, MapErasure=MapErasure, hooked=hooked)


@pytest.fixture(scope="module", params=EXPLAINED)
def family(request):
    """A model with a LoRA on its attention, and a made-up prompt for it."""
    model, generator = new_model(request.param), torch.Generator().manual_seed(2)
    lora = {}
    for name, weight in model.model.diffusion_model.named_parameters():
        if (
            any(part in name for part in ("to_k", "add_v_proj", "qkv", "w1v", "txt_attn", "cross_attn.k."))
            and weight.ndim == 2
        ):
            for letter, shape in (("A", (4, weight.shape[1])), ("B", (weight.shape[0], 4))):
                lora[f"diffusion_model.{name.removesuffix('.weight')}.lora_{letter}.weight"] = 0.2 * torch.randn(
                    shape, generator=generator
                )
    adapted = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
    assert adapted.patches, "the LoRA took no effect"
    context = torch.randn(1, TOKENS, WIDTHS.get(request.param, 32), generator=generator)
    pooled = torch.randn(1, {"SD3": 32}.get(request.param, 16), generator=generator)
    positive = [[context, {"pooled_output": pooled}]]
    return SimpleNamespace(name=request.param, model=model, adapted=adapted, positive=positive, context=context)


def sample(family, model, negative=None):
    noise = torch.randn(2, *SIZES.get(family.name, (4, 12, 16)), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, 2, 1.0 if negative is None else 3.0, "euler", "simple", family.positive,
            negative or family.positive, torch.zeros_like(noise), disable_pbar=True,
        )  # fmt: skip


def erased(core, model, family, **values):
    blocks = core.Blocks(values.pop("blocks", "all"))
    prompt = core.hooks.Prompt([""] * TOKENS, {"star": PLACES}, (), (family.context,))
    config = core.MapErasure(**{"strength": 0.0, "blocks": blocks} | values)
    return core.hooked(model, core.hooks.EraseHook(prompt, (1e9, 0.0), config, core.flux.layout(model)))


class Explicit:
    """Another pack's override: the full softmax, with the columns of the text's keys changed."""

    def __init__(self, family, strength=1.0, renormalise=False, image_only=False):
        self.strength, self.renormalise, self.image_only, self.changed = strength, renormalise, image_only, 0
        self.cross = family not in JOINT
        self.text, self.image, self.keys = JOINT.get(family, (0, 0, TOKENS))

    def on(self, model):
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = self
        return clone

    def __call__(self, _, q, k, v, heads, mask=None, skip_reshape=False, skip_output_reshape=False, **rest):
        if not skip_reshape:
            q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
        assert not skip_output_reshape
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = torch.softmax(logits if mask is None else logits + mask, dim=-1)
        if k.shape[2] == self.keys and self.strength < 1:
            self.changed += 1
            rows = slice(self.image if self.image_only else 0, None)
            part = weights[:, :, rows].clone()
            part[..., [self.text + place for place in PLACES]] *= self.strength
            weights[:, :, rows] = part / part.sum(-1, keepdim=True) if self.renormalise else part
        return (weights @ v).transpose(1, 2).flatten(2)


def close(found, expected, plain, part=1e-3):
    moved = (plain - expected).abs().max()
    assert moved > 1e-3 * plain.abs().max(), "erasing changed nothing: the test says nothing"
    assert (found - expected).abs().max() < part * moved


def test_strength_one_changes_no_bit(core, family):
    plain = sample(family, family.adapted)
    assert not torch.equal(plain, sample(family, family.model)), "the LoRA changes nothing"
    assert torch.equal(sample(family, erased(core, family.adapted, family, strength=1.0)), plain)


@pytest.mark.parametrize(
    "values", [{}, {"strength": 0.3}, {"renormalise": True}, {"image_only": True, "renormalise": True}]
)
def test_erasing_is_the_full_softmax_with_scaled_columns(core, family, values):
    """With a LoRA before it, once over ComfyUI's attention and once chained to another override."""
    reference = Explicit(family.name, **{"strength": 0.0} | values)
    expected = sample(family, reference.on(family.adapted))
    assert reference.changed == 2 * ATTENTIONS[family.name]
    plain = sample(family, family.adapted)
    close(sample(family, erased(core, family.adapted, family, **values)), expected, plain)
    other = Explicit(family.name)
    close(sample(family, erased(core, other.on(family.adapted), family, **values)), expected, plain)
    assert torch.equal(sample(family, family.adapted), plain), "the caller's MODEL has changed"


def test_blocks_are_told_apart(core, family):
    """Each block by number; together they are all."""
    layout, changed = core.flux.layout(family.model), []
    names = [*(f"dual {i}" for i in range(layout.dual)), *(f"single {i}" for i in range(layout.single))]
    assert len(names) == ATTENTIONS[family.name]
    plain = sample(family, family.model)
    changed = [sample(family, erased(core, family.model, family, blocks=name)) for name in names]
    assert all(not torch.equal(one, plain) for one in changed)
    assert all(not torch.equal(one, other) for one, other in zip(changed, changed[1:]))
    whole = sample(family, erased(core, family.model, family, blocks=", ".join(names)))
    assert torch.equal(whole, sample(family, erased(core, family.model, family, blocks="all")))


def test_the_negative_prompt_is_left_alone(core, family):
    generator = torch.Generator().manual_seed(3)
    tokens = 2 * TOKENS if family.name in ("SD15", "SDXL") else TOKENS  # then ComfyUI repeats the prompt's encoding
    context = torch.randn(1, tokens, family.context.shape[2], generator=generator)
    negative = [[context, family.positive[0][1]]]
    reference = Explicit(family.name)
    plain = sample(family, reference.on(family.model), negative)
    erasing = sample(family, erased(core, family.model, family), negative)
    close(erasing, by_parts(core, family, negative), plain)


def by_parts(core, family, negative):
    """Guidance with the two prompts in forwards of their own."""
    whole = erased(core, family.model, family)
    whole.model_options["sampler_calc_cond_batch_function"] = one_by_one
    return sample(family, whole, negative)


def one_by_one(args):
    options = {k: v for k, v in args["model_options"].items() if k != "sampler_calc_cond_batch_function"}
    return [
        comfy.samplers.calc_cond_batch(args["model"], [cond], args["input"], args["sigma"], options)[0]
        for cond in args["conds"]
    ]


@pytest.mark.parametrize("name", ["SVD_img2vid", "HunyuanDiT"])
def test_what_cannot_be_told_apart_is_refused_by_name(core, name):
    model = new_model(name)
    with pytest.raises(ValueError, match=name):
        core.flux.layout(model)


def test_more_keys_than_the_text_and_the_image_are_refused(core):
    family = SimpleNamespace(name="SD15", model=new_model("SD15"), context=torch.randn(1, TOKENS, 16))
    family.positive = [[family.context, {}]]
    longer = family.model.clone()
    longer.set_model_attn2_patch(lambda n, k, v, extra: (n, torch.cat((k, k), 1), torch.cat((v, v), 1)))
    with pytest.raises(ValueError, match="42 keys in 2 rows where 21 in 2"):
        sample(family, erased(core, longer, family))
    replaced = family.model.clone()
    replaced.set_model_attn2_replace(lambda q, k, v, extra: q, "input", 1)
    with pytest.raises(ValueError, match="block input 1 computes its cross-attention past ComfyUI's own"):
        sample(family, erased(core, replaced, family))


def test_an_image_of_as_many_tokens_as_the_text_is_refused(core):
    """Wan tells its two attentions apart by nothing else."""
    family = SimpleNamespace(name="WAN21_T2V", model=new_model("WAN21_T2V"), context=torch.randn(1, 48, 32))
    family.positive = [[family.context, {}]]
    model = erased(core, family.model, family)
    with pytest.raises(ValueError, match="both have 48 tokens"):
        sample(family, model)


@pytest.mark.parametrize(
    "name, prompt, spans",
    [
        ("SD15", "a red (star:1.2), two stars", {"star": [3, 6]}),
        ("SDXL", "a sci-fi STAR's light", {"star": [5, 6], "sci-fi": [2, 3, 4]}),
        ("SD15", "star " + 80 * "red " + "star", {"star": [1, 84]}),
        ("SD3", "a red star", {"star": [3, 80]}),
        ("QwenImage", "user, an assistant and a star", {"user": [0], "assistant": [3], "star": [6]}),
    ],
)
def test_words_are_found_in_the_context_of_each_text_encoder(pack, name, prompt, spans):
    """By positions counted by hand: CLIP opens each chunk of 77 with a token of its own, T5 cuts "a" into two."""
    from pack_under_test.nodes.attention import encoded

    with torch.inference_mode():
        found, conditioning = encoded(new_clip(name), prompt, ", ".join(spans), False, WIDTHS.get(name, 16))
    assert found.spans == spans and len(found.pieces) == conditioning[0][0].shape[1]


def test_the_clip_of_another_model_is_refused(pack):
    node = pack["EraseAnything_AttentionErase"].PREPARE_CLASS_CLONE(None)
    given = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    with pytest.raises(ValueError, match="16 features a token and the MODEL takes 32"), torch.inference_mode():
        node.execute(**given | {"model": new_model("SDXL"), "clip": new_clip("SD15")})


def test_the_probe_reads_only_flux(pack):
    node = pack["EraseAnything_AttentionProbe"].PREPARE_CLASS_CLONE(None)
    given = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    with pytest.raises(ValueError, match="of SD15: AttentionProbe reads only Flux"), torch.inference_mode():
        node.execute(**given | {"model": new_model("SD15"), "clip": new_clip("SD15")})


@pytest.mark.parametrize("name", ["SD15", "SDXL", "SD3"])
def test_the_node_erases_from_its_own_text_encoder(pack, name):
    model, clip = new_model(name), new_clip(name)
    node = pack["EraseAnything_AttentionErase"].PREPARE_CLASS_CLONE(None)
    given = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    given |= {"model": model, "clip": clip, "prompt": "a red star", "concept": "star"}
    with torch.inference_mode():
        changed, positive, tokens = node.execute(**given).args
        same = node.execute(**given | {"strength": 1.0}).args[0]
    family = SimpleNamespace(name=name, positive=positive)
    assert "star" in tokens
    plain = sample(family, model)
    assert torch.equal(sample(family, same), plain)
    assert not torch.equal(sample(family, changed), plain)
