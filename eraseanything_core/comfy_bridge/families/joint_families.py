"""The families whose text and image attend to each other in one sequence.

Each function takes ComfyUI's diffusion model and reads its layout off its modules. Where the text stands was read in
ComfyUI's own code of that class.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .block_reporters import BlockPatchReporter, ModuleReporter, OptionsReporter, ReboundAttentionReporter
from .joint_attention import JointAttention, tokens_of
from .paths import module_paths
from .texts import Arguments, Texts


def aura_flow(model: Any) -> JointAttention:
    """Learned registers stand in front of the text."""
    reporter = BlockPatchReporter(len(model.double_layers), len(model.single_layers))
    texts = Texts(model.cond_seq_linear.in_features)
    return JointAttention(reporter, texts, model.patch_size, before=model.register_tokens.shape[1])


def boogu(model: Any) -> JointAttention:
    dual = module_paths("double_stream_layers.{}.img_instruct_attn", model.double_stream_layers)
    single = module_paths("single_stream_layers.{}.attn", model.single_stream_layers)
    texts = Texts(model.time_caption_embed.caption_embedder[1].in_features)
    return JointAttention(ModuleReporter(dual, single), texts, model.patch_size, references="ref_latents")


def cogvideo(model: Any) -> JointAttention:
    reporter = ModuleReporter(module_paths("blocks.{}", model.blocks))
    texts = Texts(model.patch_embed.text_proj.in_features)
    # Only CogVideoX 1.5 joins frames into one token.
    patch = (model.patch_size_t or 1, model.patch_size, model.patch_size)
    return JointAttention(reporter, texts, patch)


def ernie(model: Any) -> JointAttention:
    reporter = ReboundAttentionReporter(module_paths("layers.{}.self_attention", model.layers))
    texts = Texts(model.text_proj.in_features if model.text_proj else model.hidden_size)
    return JointAttention(reporter, texts, model.patch_size, image_first=True)


def flux(model: Any) -> JointAttention:
    """Also FLUX.2 and Chroma."""
    reporter = OptionsReporter(len(model.double_blocks), len(model.single_blocks))
    return JointAttention(reporter, Texts(model.txt_in.in_features), model.patch_size)


def hidream(model: Any) -> JointAttention:
    """T5's tokens, Llama's last layer, and the layer of Llama that belongs to the block."""
    dual = module_paths("double_stream_blocks.{}.block.attn1", model.double_stream_blocks)
    single = module_paths("single_stream_blocks.{}.block.attn1", model.single_stream_blocks)
    second = ("conditioning_llama3", "encoder_hidden_states_llama3")

    # `select` has T5's columns, then those of one layer of Llama. Its keys stand there twice.
    def keys(select: Tensor, arguments: Arguments) -> Tensor:
        llama_tokens = arguments[second[1]].shape[2]  # of [b, layers, tokens, features]
        return torch.cat((select, select[:, -llama_tokens:]), dim=1)

    texts = Texts(model.caption_projection[-1].linear.in_features, second=second, keys=keys)
    return JointAttention(ModuleReporter(dual, single), texts, model.patch_size, image_first=True)


def hidream_o1(model: Any) -> JointAttention:
    """It takes ids, and as context the same as numbers; those of reference images come after the first three.

    The text reads itself as in a text encoder, past ComfyUI's attention; what is erased is read by the image.
    """

    def keys(select: Tensor, arguments: Arguments) -> Tensor:
        # The ids of reference images have no encoding of their own, so no column belongs to them.
        added = select.new_zeros(len(select), arguments["input_ids"].shape[1] - select.shape[1])
        return torch.cat((select[:, :3], added, select[:, 3:]), dim=1)

    reporter = OptionsReporter(len(model.language_model.layers))
    texts = Texts(1, keys=keys)
    return JointAttention(reporter, texts, model.patch_size, after=tokens_of("ref_patches"))


def hunyuan_video(model: Any) -> JointAttention:
    """1.5 has the reference image and the words in quotes in front of the text; HunyuanImage has the latter behind."""
    reporter = OptionsReporter(len(model.double_blocks), len(model.single_blocks))
    quotes_first = model.cond_type_embedding is not None
    quoted_tokens = tokens_of("txt_byt5")

    def keys(select: Tensor, arguments: Arguments) -> Tensor:
        # The columns come in the order of the encodings: the text, then the words in quotes.
        return select.roll(quoted_tokens(arguments), dims=1) if quotes_first else select

    texts = Texts(
        model.txt_in.input_embedder.in_features,
        second=("conditioning_byt5small", "txt_byt5"),
        quoted=True,
        keys=keys,
    )
    return JointAttention(reporter, texts, model.patch_size, ahead=tokens_of("clip_fea"))


def ideogram(model: Any) -> JointAttention:
    reporter = ModuleReporter(module_paths("layers.{}.attention", model.layers))
    return JointAttention(reporter, Texts(model.llm_cond_proj.in_features), patch=1)


def joy_image(model: Any) -> JointAttention:
    reporter = OptionsReporter(len(model.double_blocks))
    texts = Texts(model.condition_embedder.text_embedder.linear_1.in_features)
    return JointAttention(reporter, texts, model.patch_size, references="ref_latents", image_first=True)


def krea(model: Any) -> JointAttention:
    reporter = OptionsReporter(0, len(model.blocks))
    return JointAttention(reporter, Texts(model.txtlayers * model.txtdim), model.patch)


def lens(model: Any) -> JointAttention:
    reporter = OptionsReporter(len(model.transformer_blocks))
    return JointAttention(reporter, Texts(model.txt_in.in_features), patch=1, image_first=True)


def lumina(model: Any) -> JointAttention:
    """Also Z-Image, which pads text and image."""
    reporter = OptionsReporter(len(model.layers))
    texts = Texts(model.cap_embedder[1].in_features)
    return JointAttention(reporter, texts, model.patch_size, multiple=model.pad_tokens_multiple or 1)


def mage_flow(model: Any) -> JointAttention:
    reporter = OptionsReporter(len(model.transformer_blocks))
    return JointAttention(reporter, Texts(model.txt_in.in_features), patch=1)


def minimax(model: Any) -> JointAttention:
    """The text, which comes refined, stands before the pictures and sounds of reference, the sound and the video."""

    def others(arguments: Arguments) -> int:
        payload = arguments["minimax_payload"]
        cells = 0
        for latent in payload.get("cond_video_latents", ()):
            cells += math.prod(latent.shape[2:])
        sounds = list(arguments["latent_shapes"][1:])  # the first is the video, which counts as the image
        sounds += [latent.shape for latent in payload.get("cond_audio_latents", ())]
        return cells // math.prod(model.patch_size) + sum(math.prod(shape[2:]) for shape in sounds)

    reporter = BlockPatchReporter(len(model.blocks))
    texts = Texts(model.condition_proj.in_features, prepared=True)
    return JointAttention(reporter, texts, model.patch_size, after=others)


def mochi(model: Any) -> JointAttention:
    # The text is cut to its real length, which ComfyUI hands over; T5's padding is no key.
    def keys(select: Tensor, arguments: Arguments) -> Tensor:
        return select[:, : arguments.get("num_tokens", 256)]

    reporter = BlockPatchReporter(len(model.blocks))
    return JointAttention(reporter, Texts(model.t5_feat_dim, keys=keys), model.patch_size, image_first=True)


def omnigen(model: Any) -> JointAttention:
    reporter = ModuleReporter(module_paths("layers.{}.attn", model.layers))
    texts = Texts(model.time_caption_embed.caption_embedder[1].in_features)
    return JointAttention(reporter, texts, model.patch_size, references="ref_latents")


def pixeldit(model: Any) -> JointAttention:
    """Its pixels attend to themselves, in modules that are left as they are."""
    reporter = ModuleReporter(module_paths("patch_blocks.{}.attn", model.patch_blocks))
    return JointAttention(reporter, Texts(model.txt_embed_dim), model.patch_size)


def qwen_image(model: Any) -> JointAttention:
    reporter = OptionsReporter(len(model.transformer_blocks))
    return JointAttention(reporter, Texts(model.txt_in.in_features), model.patch_size)


def sd3(model: Any) -> JointAttention:
    reporter = BlockPatchReporter(len(model.joint_blocks))
    texts = Texts(model.context_embedder.in_features)
    return JointAttention(reporter, texts, model.patch_size, before=model.register_length)


def stable_cascade(model: Any) -> JointAttention:
    """Text, pooled text and image prompts stand behind the image, which attends to itself with them."""
    paths = []
    for name, module in model.named_modules():
        if type(module).__name__ == "AttnBlock":
            paths.append(f"{name}.attention.attn")

    def prompts(arguments: Arguments) -> int:
        count = 0
        for encoding in (arguments["clip_text_pooled"], arguments["clip_img"]):
            # A pooled encoding [b, features] is one vector, and each vector becomes `c_clip_seq` tokens.
            count += 1 if encoding.ndim == 2 else encoding.shape[1]
        return model.c_clip_seq * count

    texts = Texts(model.clip_txt_mapper.in_features, context="clip_text")
    return JointAttention(ModuleReporter(paths), texts, patch=1, behind=prompts, image_first=True)
