"""The models of ComfyUI whose code makes it certain where the text stands among the keys of each attention.

They go by the names of their classes: a ComfyUI that lacks some of them can still use the others.
"""

import math

import torch
from torch import Tensor

from .cross import Cross
from .joint import Joint, tokens_of
from .reporting import BlockPatches, CrossPatches, Deaf, Keeping, Modules, Telling
from .texts import Texts


def _each(path: str, modules) -> list[str]:
    return [path.format(i) for i in range(len(modules))]


def _flux(model) -> Joint:
    tells = Telling(len(model.double_blocks), len(model.single_blocks))
    return Joint(tells, Texts(model.txt_in.in_features), model.patch_size)


def _qwen_image(model) -> Joint:
    return Joint(Telling(len(model.transformer_blocks)), Texts(model.txt_in.in_features), model.patch_size)


def _mage(model) -> Joint:
    return Joint(Telling(len(model.transformer_blocks)), Texts(model.txt_in.in_features), 1)


def _lumina(model) -> Joint:
    texts, multiple = Texts(model.cap_embedder[1].in_features), model.pad_tokens_multiple or 1
    return Joint(Telling(len(model.layers)), texts, model.patch_size, multiple=multiple)


def _sd3(model) -> Joint:
    texts = Texts(model.context_embedder.in_features)
    return Joint(BlockPatches(len(model.joint_blocks)), texts, model.patch_size, model.register_length)


def _aura(model) -> Joint:
    tells = BlockPatches(len(model.double_layers), len(model.single_layers))
    return Joint(tells, Texts(model.cond_seq_linear.in_features), model.patch_size, model.register_tokens.shape[1])


def _hunyuan_video(model) -> Joint:
    """1.5 has the reference image and the words in quotes in front of the text; HunyuanImage has the latter behind."""
    tells = Telling(len(model.double_blocks), len(model.single_blocks))
    typed, second = model.cond_type_embedding is not None, ("conditioning_byt5small", "txt_byt5")

    def keys(select: Tensor, given: dict) -> Tensor:
        return select.roll(tokens_of("txt_byt5")(given), dims=1) if typed else select

    texts = Texts(model.txt_in.input_embedder.in_features, second=second, quoted=True, keys=keys)
    return Joint(tells, texts, model.patch_size, ahead=tokens_of("clip_fea"))


def _hidream(model) -> Joint:
    """T5's tokens, Llama's last layer, and the layer of Llama that belongs to the block."""
    dual = _each("double_stream_blocks.{}.block.attn1", model.double_stream_blocks)
    single = _each("single_stream_blocks.{}.block.attn1", model.single_stream_blocks)
    second = ("conditioning_llama3", "encoder_hidden_states_llama3")

    def keys(select: Tensor, given: dict) -> Tensor:
        return torch.cat((select, select[:, -given[second[1]].shape[2] :]), dim=1)

    texts = Texts(model.caption_projection[-1].linear.in_features, second=second, keys=keys)
    return Joint(Modules(dual, single), texts, model.patch_size, image_first=True)


def _hidream_o1(model) -> Joint:
    """It takes ids, and as context the same as numbers; those of reference images come after the first three.

    The text reads itself as in a text encoder, past ComfyUI's attention; what is erased is read by the image.
    """

    def keys(select: Tensor, given: dict) -> Tensor:
        added = select.new_zeros(len(select), given["input_ids"].shape[1] - select.shape[1])
        return torch.cat((select[:, :3], added, select[:, 3:]), dim=1)

    tells = Telling(len(model.language_model.layers))
    return Joint(tells, Texts(1, keys=keys), model.patch_size, after=tokens_of("ref_patches"))


def _omnigen(model) -> Joint:
    texts = Texts(model.time_caption_embed.caption_embedder[1].in_features)
    tells = Modules(_each("layers.{}.attn", model.layers))
    return Joint(tells, texts, model.patch_size, references="ref_latents")


def _boogu(model) -> Joint:
    texts = Texts(model.time_caption_embed.caption_embedder[1].in_features)
    dual = _each("double_stream_layers.{}.img_instruct_attn", model.double_stream_layers)
    single = _each("single_stream_layers.{}.attn", model.single_stream_layers)
    return Joint(Modules(dual, single), texts, model.patch_size, references="ref_latents")


def _mochi(model) -> Joint:
    texts = Texts(model.t5_feat_dim, keys=lambda select, given: select[:, : given.get("num_tokens", 256)])
    return Joint(BlockPatches(len(model.blocks)), texts, model.patch_size, image_first=True)


def _cogvideo(model) -> Joint:
    texts, patch = Texts(model.patch_embed.text_proj.in_features), (model.patch_size, model.patch_size)
    return Joint(Modules(_each("blocks.{}", model.blocks)), texts, (model.patch_size_t or 1, *patch))


def _krea(model) -> Joint:
    return Joint(Telling(0, len(model.blocks)), Texts(model.txtlayers * model.txtdim), model.patch)


def _joy(model) -> Joint:
    texts = Texts(model.condition_embedder.text_embedder.linear_1.in_features)
    tells = Telling(len(model.double_blocks))
    return Joint(tells, texts, model.patch_size, references="ref_latents", image_first=True)


def _ideogram(model) -> Joint:
    tells = Modules(_each("layers.{}.attention", model.layers))
    return Joint(tells, Texts(model.llm_cond_proj.in_features), 1)


def _cascade(model) -> Joint:
    """Text, pooled text and image prompts stand behind the image, which attends to itself with them."""

    def prompts(given: dict) -> int:
        pooled, image = given["clip_text_pooled"], given["clip_img"]
        return model.c_clip_seq * sum(1 if found.ndim == 2 else found.shape[1] for found in (pooled, image))

    paths = [f"{name}.attention.attn" for name, module in model.named_modules() if type(module).__name__ == "AttnBlock"]
    texts = Texts(model.clip_txt_mapper.in_features, context="clip_text")
    return Joint(Modules(paths), texts, 1, behind=prompts, image_first=True)


def _ernie(model) -> Joint:
    texts = Texts(model.text_proj.in_features if model.text_proj else model.hidden_size)
    tells = Deaf(_each("layers.{}.self_attention", model.layers))
    return Joint(tells, texts, model.patch_size, image_first=True)


def _lens(model) -> Joint:
    tells = Telling(len(model.transformer_blocks))
    return Joint(tells, Texts(model.txt_in.in_features), 1, image_first=True)


def _minimax(model) -> Joint:
    """The text, which comes refined, stands before the pictures and sounds of reference, the sound and the video."""

    def others(given: dict) -> int:
        payload = given["minimax_payload"]
        pictures = sum(math.prod(latent.shape[2:]) for latent in payload.get("cond_video_latents", ()))
        references = [latent.shape for latent in payload.get("cond_audio_latents", ())]
        sounds = sum(math.prod(shape[2:]) for shape in (*given["latent_shapes"][1:], *references))
        return pictures // math.prod(model.patch_size) + sounds

    texts = Texts(model.condition_proj.in_features, prepared=True)
    return Joint(BlockPatches(len(model.blocks)), texts, model.patch_size, after=others)


def _pixeldit(model) -> Joint:
    """Its pixels attend to themselves in modules that are not told."""
    tells = Modules(_each("patch_blocks.{}.attn", model.patch_blocks))
    return Joint(tells, Texts(model.txt_embed_dim), model.patch_size)


def _unet(model) -> Cross:
    tells = CrossPatches(model)
    inner = next((module for module in model.modules() if tells.dual and hasattr(module, "attn2")), None)
    return Cross(tells, Texts(inner.attn2.to_k.in_features if inner else 0))


def _wan(model) -> Cross:
    """The blocks of VACE come last."""
    paths = _each("blocks.{}.cross_attn", model.blocks)
    paths += _each("vace_blocks.{}.cross_attn", getattr(model, "vace_blocks", ()))
    return Cross(Modules(paths), Texts(model.text_embedding[0].in_features), beside=("clip_fea", "clip_fea_ref"))


def _wan_causal(model) -> Cross:
    tells = Keeping(_each("blocks.{}.cross_attn", model.blocks), _each("blocks.{}", model.blocks))
    return Cross(tells, Texts(model.text_embedding[0].in_features))


def _ltxv(model) -> Cross:
    paths = _each("transformer_blocks.{}.attn2", model.transformer_blocks)
    return Cross(Modules(paths), Texts(model.caption_channels))


def _ltxav(model) -> Cross:
    """The cross-attention of the sound counts as single."""
    blocks = model.transformer_blocks
    tells = Modules(_each("transformer_blocks.{}.attn2", blocks), _each("transformer_blocks.{}.audio_attn2", blocks))
    projected = model.caption_proj_before_connector and not model.caption_projection_first_linear
    both = model.cross_attention_dim + model.audio_cross_attention_dim
    return Cross(tells, Texts(both if projected else model.caption_channels, prepared=True))


def _cosmos(model) -> Cross:
    paths = [
        f"blocks.{name}.blocks.{i}.block.attn"
        for name, block in model.blocks.items()
        for i, part in enumerate(block.blocks)
        if part.block_type in ("cross_attn", "ca")
    ]
    return Cross(Modules(paths), Texts(model.get_submodule(paths[0]).to_k[0].in_features))


def _cosmos2(model) -> Cross:
    texts = Texts(model.blocks[0].cross_attn.context_dim, prepared=type(model).__name__ == "Anima")
    return Cross(Modules(_each("blocks.{}.cross_attn", model.blocks)), texts)


def _kandinsky(model) -> Cross:
    paths = _each("visual_transformer_blocks.{}.cross_attention", model.visual_transformer_blocks)
    return Cross(Modules(paths), Texts(model.text_embeddings.in_layer.in_features))


def _pixart(model) -> Cross:
    texts = Texts(model.y_embedder.y_proj.fc1.in_features)
    return Cross(Deaf(_each("blocks.{}.cross_attn", model.blocks)), texts)


def _hunyuan_dit(model) -> Cross:
    texts = Texts(model.text_states_dim, second=("conditioning_mt5xl", "encoder_hidden_states_t5"))
    return Cross(Deaf(_each("blocks.{}.attn2", model.blocks)), texts)


def _ace(model) -> Cross:
    """The speaker's token, the text, and the lyrics, which are left as they are."""
    paths = _each("transformer_blocks.{}.cross_attn", model.transformer_blocks)
    return Cross(Modules(paths), Texts(model.genre_embedder.in_features), 1, behind=tokens_of("lyric_token_idx"))


def _ace15(model) -> Cross:
    """The lyrics, as many tokens of the timbre as the forward has rows, and the text."""

    def ahead(given: dict) -> int:
        return given["lyric_embed"].shape[1] + len(given["refer_audio"])

    tells = Deaf(_each("decoder.layers.{}.cross_attn", model.decoder.layers))
    return Cross(tells, Texts(model.encoder.text_projector.in_features), ahead=ahead)


def _stable_audio(model) -> Cross:
    """The encodings of the seconds follow the text within the context."""
    paths = _each("transformer.layers.{}.cross_attn", model.transformer.layers)
    return Cross(Modules(paths), Texts(model.cond_token_dim))


LAYOUTS = {  # in comfy.ldm
    "ace.model.ACEStepTransformer2DModel": _ace,
    "ace.ace_step15.AceStepConditionGenerationModel": _ace15,
    "anima.model.Anima": _cosmos2,
    "audio.dit.AudioDiffusionTransformer": _stable_audio,
    "aura.mmdit.MMDiT": _aura,
    "boogu.model.BooguTransformer2DModel": _boogu,
    "cascade.stage_c.StageC": _cascade,
    "chroma.model.Chroma": _flux,
    "chroma_radiance.model.ChromaRadiance": _flux,
    "cogvideo.model.CogVideoXTransformer3DModel": _cogvideo,
    "cosmos.model.GeneralDIT": _cosmos,
    "cosmos.predict2.MiniTrainDIT": _cosmos2,
    "ernie.model.ErnieImageModel": _ernie,
    "flux.model.Flux": _flux,
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": _mochi,
    "hidream.model.HiDreamImageTransformer2DModel": _hidream,
    "hidream_o1.model.HiDreamO1Transformer": _hidream_o1,
    "hunyuan_video.model.HunyuanVideo": _hunyuan_video,
    "hydit.models.HunYuanDiT": _hunyuan_dit,
    "ideogram4.model.Ideogram4Transformer2DModel": _ideogram,
    "joyimage.model.JoyImageTransformer3DModel": _joy,
    "kandinsky5.model.Kandinsky5": _kandinsky,
    "krea2.model.SingleStreamDiT": _krea,
    "lens.model.LensTransformer2DModel": _lens,
    "lightricks.av_model.LTXAVModel": _ltxav,
    "lightricks.model.LTXVModel": _ltxv,
    "lumina.model.NextDiT": _lumina,
    "lumina.model.NextDiTPixelSpace": _lumina,
    "mage_flow.model.MageFlowTransformer2DModel": _mage,
    "minimax.model.MiniMaxH3Model": _minimax,
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": _sd3,
    "modules.diffusionmodules.openaimodel.UNetModel": _unet,
    "omnigen.omnigen2.OmniGen2Transformer2DModel": _omnigen,
    "pixart.pixartms.PixArtMS": _pixart,
    "pixeldit.model.PixDiT_T2I": _pixeldit,
    "pixeldit.pid.PidNet": _pixeldit,
    "qwen_image.model.QwenImageTransformer2DModel": _qwen_image,
    "wan.ar_model.CausalWanModel": _wan_causal,
    "wan.model.CameraWanModel": _wan,
    "wan.model.HumoWanModel": _wan,
    "wan.model.SCAIL2WanModel": _wan,
    "wan.model.SCAILWanModel": _wan,
    "wan.model.VaceWanModel": _wan,
    "wan.model.WanModel": _wan,
    "wan.model.WanModel_S2V": _wan,
    "wan.model_animate.AnimateWanModel": _wan,
    "wan.model_wandancer.WanDancerModel": _wan,
}
