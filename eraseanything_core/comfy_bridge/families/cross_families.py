"""The families whose image reads the text in a cross-attention.

Each function takes ComfyUI's diffusion model and reads its layout off its modules. Where the text stands was read in
ComfyUI's own code of that class.
"""

from typing import Any

from .block_reporters import ModuleReporter, ReboundAttentionReporter, TextCacheReporter, UNetReporter
from .cross_attention import CrossAttention
from .joint_attention import tokens_of
from .paths import module_paths
from .texts import Arguments, Texts


def ace_step(model: Any) -> CrossAttention:
    """The speaker's token, the text, and the lyrics, which are left as they are."""
    # Speaker, text and lyrics are joined to one sequence, which each attention reads as a whole.
    reporter = ModuleReporter(module_paths("transformer_blocks.{}.cross_attn", model.transformer_blocks))
    texts = Texts(model.genre_embedder.in_features)
    return CrossAttention(reporter, texts, before=1, behind=tokens_of("lyric_token_idx"))


def ace_step_15(model: Any) -> CrossAttention:
    """The lyrics, as many tokens of the timbre as the forward has rows, and the text."""

    def ahead(arguments: Arguments) -> int:
        return arguments["lyric_embed"].shape[1] + len(arguments["refer_audio"])

    reporter = ReboundAttentionReporter(module_paths("decoder.layers.{}.cross_attn", model.decoder.layers))
    return CrossAttention(reporter, Texts(model.encoder.text_projector.in_features), ahead=ahead)


def cosmos(model: Any) -> CrossAttention:
    paths = []
    for name, block in model.blocks.items():
        for i, part in enumerate(block.blocks):
            if part.block_type in ("cross_attn", "ca"):
                paths.append(f"blocks.{name}.blocks.{i}.block.attn")
    # Here k is a sequence of a linear and a norm.
    features = model.get_submodule(paths[0]).to_k[0].in_features
    return CrossAttention(ModuleReporter(paths), Texts(features), patch=model.patch_spatial)


def cosmos_predict2(model: Any) -> CrossAttention:
    """Also Anima, which makes one encoding of the text from two before sampling."""
    reporter = ModuleReporter(module_paths("blocks.{}.cross_attn", model.blocks))
    texts = Texts(model.blocks[0].cross_attn.context_dim, prepared=type(model).__name__ == "Anima")
    return CrossAttention(reporter, texts, patch=model.patch_spatial)


def hunyuan_dit(model: Any) -> CrossAttention:
    reporter = ReboundAttentionReporter(module_paths("blocks.{}.attn2", model.blocks))
    texts = Texts(model.text_states_dim, second=("conditioning_mt5xl", "encoder_hidden_states_t5"))
    return CrossAttention(reporter, texts, patch=model.patch_size)


def kandinsky(model: Any) -> CrossAttention:
    paths = module_paths("visual_transformer_blocks.{}.cross_attention", model.visual_transformer_blocks)
    texts = Texts(model.text_embeddings.in_layer.in_features)
    return CrossAttention(ModuleReporter(paths), texts, patch=2)


def ltx_audio_video(model: Any) -> CrossAttention:
    """The cross-attention of the sound counts as single."""
    video = module_paths("transformer_blocks.{}.attn2", model.transformer_blocks)
    audio = module_paths("transformer_blocks.{}.audio_attn2", model.transformer_blocks)
    features = model.caption_channels
    if model.caption_proj_before_connector and not model.caption_projection_first_linear:
        # Projected before sampling: one encoding for the video and one for the sound, side by side.
        features = model.cross_attention_dim + model.audio_cross_attention_dim
    return CrossAttention(ModuleReporter(video, audio), Texts(features, prepared=True))


def ltx_video(model: Any) -> CrossAttention:
    reporter = ModuleReporter(module_paths("transformer_blocks.{}.attn2", model.transformer_blocks))
    return CrossAttention(reporter, Texts(model.caption_channels))


def pixart(model: Any) -> CrossAttention:
    reporter = ReboundAttentionReporter(module_paths("blocks.{}.cross_attn", model.blocks))
    return CrossAttention(reporter, Texts(model.y_embedder.y_proj.fc1.in_features), patch=model.patch_size)


def stable_audio(model: Any) -> CrossAttention:
    """The encodings of the seconds follow the text within the context."""
    reporter = ModuleReporter(module_paths("transformer.layers.{}.cross_attn", model.transformer.layers))
    return CrossAttention(reporter, Texts(model.cond_token_dim))


def unet(model: Any) -> CrossAttention:
    """Stable Diffusion 1, 2 and XL, and whatever shares their U-Net; no features where it has no cross-attention."""
    reporter = UNetReporter(model)
    features = 0
    if reporter.dual:
        # All cross-attentions of a U-Net read encodings of one width.
        block = next(module for module in model.modules() if hasattr(module, "attn2"))
        features = block.attn2.to_k.in_features
    return CrossAttention(reporter, Texts(features))


def wan(model: Any) -> CrossAttention:
    """The blocks of VACE come last."""
    paths = module_paths("blocks.{}.cross_attn", model.blocks)
    # Only VACE has these, which run beside the others on the images that guide it.
    paths += module_paths("vace_blocks.{}.cross_attn", getattr(model, "vace_blocks", ()))
    texts = Texts(model.text_embedding[0].in_features)
    return CrossAttention(ModuleReporter(paths), texts, separate=("clip_fea", "clip_fea_ref"), patch=2)


def wan_causal(model: Any) -> CrossAttention:
    """It keeps the keys of the text from frame to frame."""
    reporter = TextCacheReporter(
        module_paths("blocks.{}.cross_attn", model.blocks), module_paths("blocks.{}", model.blocks)
    )
    return CrossAttention(reporter, Texts(model.text_embedding[0].in_features), patch=2)
