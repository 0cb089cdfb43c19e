"""AttentionErase on small random models of ComfyUI's other families, against a full softmax with scaled columns."""

from functools import partial
from types import SimpleNamespace

import comfy.ldm.wan.ar_model
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.sd
import pytest
import torch

from tests.comfy.case import PLACES, TOKENS
from tests.comfy.columns import Explicit, close, erased, new_family, sample
from tests.comfy.layouts import CASES
from tests.comfy.tiny import new_clip, new_model

ADAPTED = (  # parts of the names of an attention's weights
    "to_k", "to_v", "add_v_proj", "qkv", "w1v", "txt_attn", "cross_attn.k.", "kv_proj", "kv_linear", "to_kv", "wv",
    "k_proj", "v_proj", "to_key", "blocks.0.v.",
)  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def family(request):
    """With a LoRA on its attention."""
    family = new_family(request.param)
    generator = torch.Generator().manual_seed(2)
    lora = {}
    for name, weight in family.model.model.diffusion_model.named_parameters():
        if any(part in name for part in ADAPTED) and weight.ndim == 2 and name.endswith(".weight"):
            for letter, shape in (("A", (4, weight.shape[1])), ("B", (weight.shape[0], 4))):
                lora[f"diffusion_model.{name.removesuffix('.weight')}.lora_{letter}.weight"] = 0.2 * torch.randn(
                    shape, generator=generator
                )
    family.adapted = comfy.sd.load_lora_for_models(family.model, None, lora, 1.0, 0.0)[0]
    assert family.adapted.patches, "the LoRA took no effect"
    return family


def test_strength_one_changes_no_bit(core, family):
    plain = sample(family, family.adapted)
    assert not torch.equal(plain, sample(family, family.model)), "the LoRA changes nothing"
    assert torch.equal(sample(family, erased(core, family.adapted, family, strength=1.0)), plain)


@pytest.mark.parametrize(
    "values", [{}, {"strength": 0.3}, {"renormalise": True}, {"image_only": True, "renormalise": True}]
)
def test_erasing_is_the_full_softmax_with_scaled_columns(core, family, values):
    """With a LoRA before it, once over ComfyUI's attention and once chained to another override."""
    reference = Explicit(family.case, **{"strength": 0.0} | values)
    expected = reference.sample(family, family.adapted)
    assert reference.changed == family.case.steps * family.case.calls * family.case.attentions
    plain = sample(family, family.adapted)
    close(sample(family, erased(core, family.adapted, family, **values)), expected, plain)
    other = Explicit(family.case)
    close(sample(family, erased(core, other.on(family.adapted), family, **values)), expected, plain)
    assert torch.equal(sample(family, family.adapted), plain), "the caller's MODEL has changed"


def test_blocks_are_told_apart(core, family):
    """Each block by number; together they are all."""
    reporter = core.layout(family.model).reporter
    names = [*(f"dual {i}" for i in range(reporter.dual)), *(f"single {i}" for i in range(reporter.single))]
    assert len(names) == family.case.attentions
    plain = sample(family, family.model)
    changed = [sample(family, erased(core, family.model, family, blocks=name)) for name in names]
    assert all(not torch.equal(one, plain) for one in changed)
    assert all(not torch.equal(one, other) for one, other in zip(changed, changed[1:]))
    whole = sample(family, erased(core, family.model, family, blocks=", ".join(names)))
    assert torch.equal(whole, sample(family, erased(core, family.model, family, blocks="all")))


def test_the_negative_prompt_is_left_alone(core, family):
    generator = torch.Generator().manual_seed(3)
    longer = ("SD15", "SDXL", "ACEStep15")  # the first two: then ComfyUI repeats the prompt's encoding
    tokens = 2 * TOKENS if family.name in longer else TOKENS  # ACE-Step's rows depend on how many a forward has
    context = torch.randn(1, tokens, family.context.shape[2], generator=generator)
    negative = [[context, family.positive[0][1]]]
    plain = Explicit(family.case).sample(family, family.model, negative)
    erasing = sample(family, erased(core, family.model, family), negative)
    expected = sample(family, in_parts(erased(core, family.model, family)), negative)
    moved = (plain - expected).abs().max()
    assert moved > 1e-3 * plain.abs().max(), "erasing changed nothing: the test says nothing"
    # Some processors round a batch of two otherwise than two batches of one. So much is not the eraser's doing.
    rounding = (sample(family, in_parts(family.model), negative) - sample(family, family.model, negative)).abs().max()
    assert rounding < 0.01 * moved, "rounding hides what the test looks for"
    assert (erasing - expected).abs().max() < max(1e-3 * moved, 4 * rounding)


def in_parts(model):
    """The model with the two prompts of guidance in forwards of their own."""
    clone = model.clone()
    clone.model_options["sampler_calc_cond_batch_function"] = one_by_one
    return clone


def one_by_one(args):
    options = {k: v for k, v in args["model_options"].items() if k != "sampler_calc_cond_batch_function"}
    return [
        comfy.samplers.calc_cond_batch(args["model"], [cond], args["input"], args["sigma"], options)[0]
        for cond in args["conds"]
    ]


class Longer:
    """Another node that adds tokens to the text."""

    def on(self, model):
        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.APPLY_MODEL, "longer", self)
        return clone

    def __call__(self, executor, x, t, c_concat, context, control, options, **rest):
        for name in ("clip_text", "input_ids"):
            if name in rest:
                rest[name] = self.longer(rest[name])
        if context is not None:
            context = self.longer(context)
        return executor(x, t, c_concat, context, control, options, **rest)

    def longer(self, context):
        return torch.cat((context, context[:, :5]), dim=1)


def test_a_longer_text_than_the_prompt_is_an_error(core, family):
    """Also where the text's mask, which is as long as before, stops ComfyUI first."""
    with pytest.raises((ValueError, RuntimeError, AssertionError), match="keys in|size|mask must be|^$"):
        sample(family, Longer().on(erased(core, family.model, family)))


def test_what_takes_no_text_is_refused_by_name(core):
    with pytest.raises(ValueError, match="in a MODEL of SVD_img2vid: it has no cross-attention to a text"):
        core.layout(new_model("SVD_img2vid"))


def test_wan_that_keeps_the_text_from_frame_to_frame(core):
    """Two frames of two steps, whose keys and values of the text ComfyUI computes once."""
    family = new_family("WAN21_CausalAR_T2V")

    def frames(model):
        noise = torch.randn(1, 16, 2, 12, 16, generator=torch.Generator().manual_seed(1))
        sigmas = (1.0, 0.5, 0.0)
        sampler = comfy.samplers.ksampler("ar_video")
        positive = family.positive
        with torch.inference_mode():
            return comfy.sample.sample_custom(
                model,
                noise,
                1.0,
                sampler,
                torch.tensor(sigmas),
                positive,
                positive,
                noise * 0,
                disable_pbar=True,
                seed=0,
            )

    plain = frames(family.model)
    reference = Explicit(family.case, strength=0.0)
    with pytest.MonkeyPatch.context() as patch:
        for module in (comfy.ldm.wan.model, comfy.ldm.wan.ar_model):
            patch.setattr(module, "optimized_attention", partial(reference, None))
        expected = frames(family.model)
    assert reference.changed >= family.case.attentions * 4
    close(frames(erased(core, family.model, family)), expected, plain)
    assert torch.equal(frames(erased(core, family.model, family, strength=1.0)), plain)
    assert torch.equal(frames(family.model), plain)


@pytest.mark.parametrize("name", ["Chroma", "LTXV"])
def test_a_compiled_model_is_erased_from(core, name):
    """In the form of an object patch, which some packs use. The compiler itself is left out, for it takes long."""
    family = new_family(name)
    plain = sample(family, family.model)
    expected = sample(family, erased(core, family.model, family))
    compiled = family.model.clone()
    compiled.add_object_patch("diffusion_model", torch.compile(family.model.get_model_object("diffusion_model")))
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(sample(family, erased(core, compiled, family)), expected)
    assert torch.equal(sample(family, family.model), plain) and not torch.equal(plain, expected)


def test_more_keys_than_the_text_and_the_image_are_refused(core):
    family = new_family("SD15")
    longer = family.model.clone()
    longer.set_model_attn2_patch(lambda n, k, v, extra: (n, torch.cat((k, k), 1), torch.cat((v, v), 1)))
    with pytest.raises(ValueError, match="42 keys in 2 rows where 21 in 2"):
        sample(family, erased(core, longer, family))
    replaced = family.model.clone()
    replaced.set_model_attn2_replace(lambda q, k, v, extra: q, "input", 1)
    with pytest.raises(ValueError, match="block input 1 computes its cross-attention past ComfyUI's own"):
        sample(family, erased(core, replaced, family))


@pytest.mark.parametrize("name, quoted", [("HunyuanImage21", 21), ("HunyuanVideo15", 7)])
def test_words_in_quotation_marks_are_erased_twice(core, name, quoted):
    """Two letters of them; and a negative prompt has none."""
    family = new_family(name)
    erasing = erased(core, family.model, family, places=[*PLACES, TOKENS + 1, TOKENS + 3])
    columns = [*family.case.columns, quoted + 1, quoted + 3]
    reference = Explicit(SimpleNamespace(**vars(family.case), columns=columns), strength=0.0)
    close(sample(family, erasing), reference.sample(family, family.model), sample(family, family.model))
    negative = [[-family.context, {"pooled_output": family.positive[0][1]["pooled_output"]}]]
    assert not torch.equal(sample(family, erasing, negative), sample(family, family.model, negative))


def test_an_image_of_as_many_tokens_as_the_text_is_no_obstacle(core):
    family = new_family("WAN21_T2V")
    family.context = family.positive[0][0] = torch.randn(1, 48, 32)
    known = sample(family, erased(core, family.model, family))
    assert not torch.equal(known, sample(family, family.model))


def test_an_erased_model_leaves_the_others_as_they_are(core):
    """The modules whose forward an object patch replaces are the caller's again."""
    for name in ("LTXV", "PixArtSigma"):
        family = new_family(name)
        plain = sample(family, family.model)
        once = erased(core, family.model, family)
        both = erased(core, once, family, strength=0.3)
        erased_once = sample(family, once)
        erased_twice = sample(family, both)
        assert not torch.equal(erased_once, plain) and torch.equal(sample(family, family.model), plain)
        assert torch.allclose(erased_twice, erased_once, atol=1e-4)
        assert torch.equal(sample(family, once), erased_once)


def test_the_clip_of_another_model_is_refused(pack):
    node = pack["EraseAnything_AttentionErase"].PREPARE_CLASS_CLONE(None)
    inputs = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    with pytest.raises(ValueError, match="16 features a token and the MODEL takes 32"), torch.inference_mode():
        node.execute(**inputs | {"model": new_model("SDXL"), "clip": new_clip("SD15")})


def test_the_probe_reads_no_sound(pack):
    node = pack["EraseAnything_AttentionProbe"].PREPARE_CLASS_CLONE(None)
    inputs = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    with pytest.raises(ValueError, match="of MiniMaxH3: it makes sound"), torch.inference_mode():
        node.execute(**inputs | {"model": new_model("MiniMaxH3"), "clip": new_clip("MiniMaxH3")})


def test_the_probe_does_not_read_behind_padding(core):
    family = new_family("Flux2")
    prompt = core.LocatedPrompt([""] * TOKENS, {"star": list(PLACES)}, (), ((family.context,),))
    hook = core.hooks.ProbeHook(prompt, (1e9, 0.0), core.Blocks("all"), ())
    with pytest.raises(ValueError, match="puts padding in front of the prompt"):
        sample(family, core.with_hook(family.model, hook))


@pytest.mark.parametrize(
    "name", ["SD15", "SDXL", "SD3", "HiDream", "HiDreamO1", "LongCatImage", "LTXV", "MiniMaxH3", "PixArtSigma"]
)
def test_the_node_erases_from_its_own_text_encoder(pack, name):
    model = new_model(name)
    clip = new_clip(name)
    node = pack["EraseAnything_AttentionErase"].PREPARE_CLASS_CLONE(None)
    inputs = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    inputs |= {"model": model, "clip": clip, "prompt": "a red star", "concept": "star"}
    with torch.inference_mode():
        changed, positive, tokens = node.execute(**inputs).args
        same = node.execute(**inputs | {"strength": 1.0}).args[0]
    family = SimpleNamespace(name=name, case=CASES[name], positive=positive)
    assert "star" in tokens
    plain = sample(family, model)
    assert torch.equal(sample(family, same), plain)
    assert not torch.equal(sample(family, changed), plain)
