"""For each family: the smallest model of its class, what its prompt is made of, and where the text stands by hand."""

from types import SimpleNamespace

import comfy.ldm.ace.ace_step15
import comfy.ldm.ernie.model
import comfy.ldm.hydit.attn_layers
import comfy.ldm.pixart.blocks
import torch
from comfy.ldm.audio.embedders import NumberConditioner

from tests.comfy.case import TOKENS, Case, random

UNET = {
    "image_size": 8, "in_channels": 4, "out_channels": 4, "num_res_blocks": [1, 1], "channel_mult": (1, 2),
    "transformer_depth_middle": 1, "transformer_depth_output": [1, 1, 2, 2], "use_spatial_transformer": True,
    "legacy": False, "use_temporal_attention": False,
}  # fmt: skip
CHROMA = {
    "context_in_dim": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "theta": 10000,
    "qkv_bias": True, "in_dim": 64, "hidden_dim": 32, "n_layers": 1, "txt_ids_dims": [], "vec_in_dim": None,
    "hidden_size": 128, "axes_dim": [16, 24, 24], "out_dim": 128, "patch_size": 2,
}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": None, "context_in_dim": 16,
    "hidden_size": 128, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "patch_size": 2,
    "axes_dim": [16, 24, 24], "theta": 10000, "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": [1, 2],
}  # fmt: skip
HUNYUAN = {
    "image_model": "hunyuan_video", "vec_in_dim": 16, "context_in_dim": 32, "hidden_size": 128, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 2, "depth_single_blocks": 2, "theta": 256, "qkv_bias": True, "guidance_embed": False,
    "meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False, "byt5": False,
}  # fmt: skip
WAN = {"image_model": "wan2.1", "dim": 128, "ffn_dim": 64, "freq_dim": 64, "text_dim": 32, "num_heads": 2}
OMNIGEN = {
    "hidden_size": 128, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1,
    "multiple_of": 32, "axes_dim_rope": (16, 24, 24),
}  # fmt: skip
PIXELDIT = {
    "num_groups": 2, "hidden_size": 128, "pixel_hidden_size": 16, "pixel_attn_hidden_size": 64, "pixel_num_groups": 1,
    "patch_depth": 2, "pixel_depth": 1, "txt_embed_dim": 32, "txt_max_length": 300,
}  # fmt: skip
COSMOS = {
    "max_img_h": 32, "max_img_w": 32, "max_frames": 4, "in_channels": 16, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 128, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 2.0,
    "crossattn_emb_channels": 32, "pos_emb_cls": "rope3d",
}  # fmt: skip
LTX = {
    "in_channels": 128, "cross_attention_dim": 128, "attention_head_dim": 64, "num_attention_heads": 2,
    "caption_channels": 32, "num_layers": 2,
}  # fmt: skip
VIDEO = (16, 1, 12, 16)
MASK = {"attention_mask": torch.ones(1, TOKENS, dtype=torch.long)}
SEEN = {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=random(1, 7, 1280))}
SECONDS = {
    f"conditioner.conditioners.seconds_{name}.{key}": torch.full_like(value, 0.1)
    for name in ("start", "total") for key, value in NumberConditioner(768).state_dict().items()
}  # fmt: skip
SECONDS3 = {
    f"conditioner.conditioners.seconds_total.{key}": torch.full_like(value, 0.1)
    for key, value in NumberConditioner(768, fourier_features_type="expo").state_dict().items()
}
TEXT_FIRST = {"keys": 69, "image": (21, None)}
TEXT_LAST = {"keys": 69, "text": (48,), "image": (0, 48)}

CASES = {
    "SD15": Case(
        UNET | {"model_channels": 32, "transformer_depth": [1, 2], "context_dim": 16, "adm_in_channels": None},
        size=(4, 12, 16), width=16, attentions=10,
    ),
    "SDXL": Case(
        UNET | {
            "model_channels": 64, "transformer_depth": [0, 2], "context_dim": 32, "num_classes": "sequential",
            "adm_in_channels": 16 + 6 * 256, "use_linear_in_transformer": True,
            "transformer_depth_output": [0, 0, 2, 2],
        },
        size=(4, 12, 16), attentions=7,
    ),
    "SD3": Case(
        {
            "input_size": None, "patch_size": 2, "in_channels": 16, "depth": 2, "num_blocks": 3,
            "adm_in_channels": 32, "num_patches": 64, "pos_embed_max_size": 8, "qk_norm": "rms",
            "x_block_self_attn_layers": [0], "pos_embed_scaling_factor": None, "out_channels": 16,
            "context_embedder_config": {
                "target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128},
            },
        },
        width=4096, features=32, attentions=3, **TEXT_FIRST,
    ),
    "AuraFlow": Case(
        {
            "dim": 128, "n_layers": 3, "n_double_layers": 1, "n_heads": 2, "global_conddim": 128,
            "cond_seq_dim": 32, "max_seq": 64,
        },
        size=(4, 12, 16), text=(8,), keys=77, image=(29, None), attentions=3,
    ),
    "Chroma": Case(
        CHROMA | {"image_model": "chroma", "in_channels": 64, "out_channels": 64}, attentions=4, **TEXT_FIRST
    ),
    "Flux2": Case(
        {
            "image_model": "flux2", "in_channels": 128, "out_channels": 128, "vec_in_dim": None, "context_in_dim": 32,
            "hidden_size": 128, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
            "axes_dim": [16, 16, 16, 16], "theta": 2000, "patch_size": 1, "qkv_bias": False, "guidance_embed": True,
            "txt_ids_dims": [3], "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
        },
        size=(128, 6, 8), text=(491,), keys=560, image=(512, None), attentions=4,
    ),
    "FluxSchnell": Case(FLUX | {"yak_mlp": True, "txt_norm": True}, width=16, attentions=4, **TEXT_FIRST),  # Ovis-Image
    "LongCatImage": Case(FLUX, width=16, attentions=4, **TEXT_FIRST),
    "QwenImage": Case(
        {
            "image_model": "qwen_image", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
            "joint_attention_dim": 32, "axes_dims_rope": (16, 24, 24),
        },
        size=VIDEO, **TEXT_FIRST,
    ),
    "Lumina2": Case(
        {
            "image_model": "lumina2", "in_channels": 16, "dim": 128, "n_layers": 2, "n_refiner_layers": 1,
            "n_heads": 2, "n_kv_heads": 1, "axes_dims": [16, 24, 24], "cap_feat_dim": 32, "qk_norm": True,
            "pad_tokens_multiple": 8, "clip_text_dim": 16,  # which NewBie has
        },
        keys=72, image=(24, None),
    ),
    "HiDream": Case(
        {
            "image_model": "hidream", "in_channels": 16, "patch_size": 2, "num_layers": 2, "num_single_layers": 1,
            "attention_head_dim": 64, "num_attention_heads": 2, "caption_channels": [4096, 16], "text_emb_dim": 32,
            "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": [32, 16, 16],
            "llama_layers": [0, 1, 1], "max_resolution": [32, 32],
        },
        width=4096, features=32, text=(48,), keys=48 + 21 + 2 * 13, image=(0, 48), attentions=3,
        more={"conditioning_llama3": random(1, 2, 13, 16)},
    ),
    "HiDreamO1": Case(
        {
            "image_model": "hidream_o1",
            "text_config_overrides": {
                "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                "num_key_value_heads": 1, "head_dim": 64, "rope_dims": [12, 10, 10],
            },
            "vision_config_overrides": {"hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "depth": 1},
        },
        size=(3, 192, 256), width=1, keys=69, image=(1, None), steps=2,
        more={"text_input_ids": torch.arange(TOKENS)[None]},
    ),
    "HunyuanVideo": Case(
        HUNYUAN | {"in_channels": 16, "out_channels": 16, "axes_dim": [16, 24, 24], "patch_size": [1, 2, 2]},
        size=VIDEO, attentions=4, **TEXT_FIRST,
    ),
    "HunyuanImage21": Case(
        HUNYUAN | {
            "in_channels": 64, "out_channels": 64, "axes_dim": [32, 32], "patch_size": [1, 1], "byt5": True,
            "vec_in_dim": None,
        },
        size=(64, 6, 8), keys=74, image=(26, None), attentions=4,
        more={"conditioning_byt5small": random(1, 5, 1472)},
    ),
    "HunyuanVideo15": Case(
        HUNYUAN | {
            "in_channels": 65, "out_channels": 32, "axes_dim": [16, 24, 24], "patch_size": [1, 1, 1], "byt5": True,
            "vec_in_dim": None, "vision_in_dim": 1152, "use_cond_type_embedding": True,
        },
        size=(32, 1, 6, 8), text=(12,), keys=81, image=(33, None), attentions=4,
        more={
            "conditioning_byt5small": random(1, 5, 1472),
            "clip_vision_output": SimpleNamespace(last_hidden_state=random(1, 7, 1152)),
        },
    ),
    "Omnigen2": Case(OMNIGEN | {"image_model": "omnigen2", "text_feat_dim": 32}, more=MASK, **TEXT_FIRST),
    "Boogu": Case(
        OMNIGEN | {"image_model": "boogu", "num_double_stream_layers": 1, "instruction_feat_dim": 32},
        more=MASK, attentions=3, **TEXT_FIRST,
    ),
    "GenmoMochi": Case(
        {
            "image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2, "hidden_size_x": 128,
            "hidden_size_y": 32, "mlp_ratio_x": 96.0, "mlp_ratio_y": 2.0, "learn_sigma": False, "in_channels": 12,
            "qk_norm": True, "qkv_bias": False, "out_bias": True, "attn_drop": 0.0, "patch_embed_bias": True,
            "posenc_preserve_area": True, "timestep_mlp_bias": True, "attend_to_padding": False,
            "timestep_scale": 1000.0, "use_t5": True, "t5_feat_dim": 32, "t5_token_length": 21, "rope_theta": 10000.0,
        },
        size=(12, 1, 12, 16), text=(48,), keys=67, image=(0, 48),
        more={"attention_mask": torch.tensor([[1] * 19 + [0] * 2])},
    ),
    "CogVideoX_T2V": Case(
        {
            "image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 64, "num_layers": 2,
            "text_embed_dim": 32, "time_embed_dim": 32, "max_text_seq_length": 21, "sample_width": 16,
            "sample_height": 12, "sample_frames": 1, "use_rotary_positional_embeddings": True,
        },
        size=VIDEO, steps=2, **TEXT_FIRST,
    ),
    "Krea2": Case(
        {
            "image_model": "krea2", "features": 128, "tdim": 32, "txtdim": 16, "heads": 2, "kvheads": 1,
            "multiplier": 2, "layers": 2, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2,
        },
        size=VIDEO, **TEXT_FIRST,
    ),
    "JoyImage": Case(
        {
            "image_model": "joyimage", "patch_size": (1, 2, 2), "in_channels": 16, "hidden_size": 128,
            "num_attention_heads": 1, "text_dim": 32, "num_layers": 2, "rope_dim_list": [16, 56, 56],
        },
        size=VIDEO, **TEXT_LAST,
    ),
    "Ideogram4": Case(
        {
            "image_model": "ideogram4", "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64,
            "intermediate_size": 64, "adaln_dim": 32, "llm_features_dim": 32, "mrope_section": (12, 10, 10),
        },
        size=(128, 6, 8), **TEXT_FIRST,
    ),
    "MageFlow": Case(
        {
            "image_model": "mage_flow", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
            "joint_attention_dim": 32, "axes_dims_rope": (16, 24, 24), "in_channels": 128, "out_channels": 128,
        },
        size=(128, 6, 8), **TEXT_FIRST,
    ),
    "MiniMaxH3": Case(
        {
            "image_model": "minimax_h3", "hidden_size": 128, "num_layers": 2, "token_refiner_num_layers": 1,
            "num_attention_heads": 2, "attention_head_dim": 64, "ffn_hidden_size": 64, "text_dim": 16,
            "timestep_input_dim": 32, "time_embed_hidden_size": 32, "time_embed_dim": 32, "rope_inv_freq_len": 4,
        },
        size=(24, 1, 12, 16), sound=(32, 2, 5), width=16, keys=79, image=(21, None),
    ),
    "Stable_Cascade_C": Case(
        {
            "stable_cascade_stage": "c", "c_cond": 64, "c_hidden": [64, 64], "nhead": [1, 1],
            "blocks": [[1, 1], [1, 1]], "c_clip_text": 32, "c_clip_text_pooled": 16,
        },
        size=(16, 6, 8), text=(48,), keys=48 + 21 + 8, attentions=4,
    ),
    "ErnieImage": Case(
        {
            "image_model": "ernie", "hidden_size": 128, "num_attention_heads": 2, "num_layers": 2,
            "ffn_hidden_size": 64, "text_in_dim": 32, "rope_axes_dim": (16, 24, 24),
        },
        size=(128, 6, 8), attention_module=comfy.ldm.ernie.model, **TEXT_LAST,
    ),
    "PixArtSigma": Case(
        {
            "image_model": "pixart_sigma", "depth": 2, "hidden_size": 96, "num_heads": 2, "caption_channels": 4096,
            "model_max_length": 300, "micro_condition": False,
        },
        size=(4, 32, 36), width=4096, attention_module=comfy.ldm.pixart.blocks,
    ),
    "HunyuanDiT": Case(
        {
            "image_model": "hydit", "depth": 2, "hidden_size": 64, "num_heads": 2, "text_states_dim": 32,
            "text_states_dim_t5": 16, "text_len": 21, "text_len_t5": 13,
        },
        size=(4, 12, 16), keys=34, attention_module=comfy.ldm.hydit.attn_layers,
        more={
            "attention_mask": torch.ones(1, 21), "conditioning_mt5xl": random(1, 13, 16),
            "attention_mask_mt5xl": torch.ones(1, 13),
        },
    ),
    "Lens": Case(
        {
            "image_model": "lens", "out_channels": 128, "patch_size": 1, "num_layers": 2, "attention_head_dim": 64,
            "num_attention_heads": 2, "enc_hidden_dim": 16, "selected_layer_index": (1, 2),
        },
        size=(128, 6, 8), more=MASK, **TEXT_LAST,
    ),
    "PixelDiTT2I": Case(PIXELDIT | {"image_model": "pixeldit_t2i"}, size=(3, 96, 128), **TEXT_FIRST),
    "PiD": Case(
        PIXELDIT | {"image_model": "pid", "lq_hidden_dim": 32, "lq_num_res_blocks": 1, "pit_lq_inject": True},
        size=(3, 96, 128), more={"lq_latent": random(1, 16, 3, 4), "degrade_sigma": torch.tensor([0.3])}, **TEXT_FIRST,
    ),
    "WAN21_T2V": Case(WAN | {"model_type": "t2v", "num_layers": 2}, size=VIDEO),
    "WAN21_CausalAR_T2V": Case(WAN | {"model_type": "t2v", "num_layers": 2, "causal_ar": True}, size=VIDEO),
    "WAN21_I2V": Case(WAN | {"model_type": "i2v", "num_layers": 2, "in_dim": 36}, size=VIDEO, more=SEEN),
    "WAN21_Vace": Case(
        WAN | {"model_type": "vace", "num_layers": 2, "vace_layers": 1, "vace_in_dim": 96}, size=VIDEO, attentions=3
    ),
    "WAN21_Camera": Case(
        WAN | {"model_type": "camera", "num_layers": 2, "in_dim": 36, "in_dim_control_adapter": 24},
        size=VIDEO, more=SEEN,
    ),
    "WAN21_HuMo": Case(WAN | {"model_type": "humo", "num_layers": 2, "in_dim": 16, "audio_token_num": 16}, size=VIDEO),
    "WAN22_S2V": Case(WAN | {"model_type": "s2v", "num_layers": 2}, size=VIDEO),
    "WAN22_Animate": Case(WAN | {"model_type": "animate", "num_layers": 2, "in_dim": 36}, size=VIDEO, more=SEEN),
    "WAN21_SCAIL": Case(WAN | {"model_type": "scail", "num_layers": 2, "in_dim": 20}, size=VIDEO, more=SEEN),
    "LTXV": Case(
        LTX | {"image_model": "ltxv", "caption_channels": 4096}, size=(128, 1, 6, 8), width=4096, more=MASK
    ),
    "CosmosT2V": Case(
        COSMOS | {
            "image_model": "cosmos", "block_x_format": "THWBD", "affline_emb_norm": True,
            "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable",
        },
        size=VIDEO,
    ),
    "CosmosT2IPredict2": Case(COSMOS | {"image_model": "cosmos_predict2"}, size=VIDEO),
    "Kandinsky5": Case(
        {
            "image_model": "kandinsky5", "in_text_dim": 32, "in_text_dim2": 16, "time_dim": 32, "model_dim": 128,
            "ff_dim": 64, "visual_embed_dim": 132, "num_text_blocks": 1, "num_visual_blocks": 2,
        },
        size=VIDEO,
    ),
    "ACEStep": Case(
        {
            "audio_model": "ace", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
            "text_embedding_dim": 32, "ssl_latent_dims": [8, 8], "mlp_ratio": 1.0,
        },
        size=(8, 16, 24), text=(1,), keys=1 + 21 + 9, more={"conditioning_lyrics": torch.arange(9)[None]},
    ),
    "ACEStep15": Case(
        {
            "audio_model": "ace1.5", "hidden_size": 64, "encoder_hidden_size": 64, "text_hidden_dim": 32,
            "intermediate_size": 64, "encoder_intermediate_size": 64, "num_heads": 2, "encoder_num_heads": 2,
            "num_kv_heads": 1, "head_dim": 32, "num_dit_layers": 2, "num_lyric_layers": 1, "num_timbre_layers": 1,
            "num_tokenizer_layers": 1, "fsq_dim": 64,
        },
        size=(64, 40), text=(9 + 2,), keys=9 + 2 + 21, attention_module=comfy.ldm.ace.ace_step15,
        more={"conditioning_lyrics": random(1, 9, 32)},
    ),
    "StableAudio": Case(
        {
            "audio_model": "dit1.0", "io_channels": 64, "project_cond_tokens": True, "embed_dim": 128,
            "cond_token_dim": 768, "global_cond_dim": 1536, "depth": 2, "num_heads": 2,
        },
        size=(64, 40), width=768, keys=23, state=SECONDS,
    ),
    "StableAudio3": Case(
        {
            "audio_model": "dit1.0", "io_channels": 64, "project_cond_tokens": True, "embed_dim": 128, "depth": 2,
            "cond_token_dim": 768, "global_cond_dim": 768, "num_heads": 2, "global_cond_shared_embed": True,
            "global_cond_type": "adaLN", "timestep_features_type": "expo", "local_add_cond_dim": 65,
            "norm_type": "rms_norm", "attn_kwargs": {"qk_norm": "rms", "differential": True},
        },
        size=(64, 40), width=768, keys=22, calls=2, state=SECONDS3,
    ),
    "ChromaRadiance": Case(
        CHROMA | {
            "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16,
            "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 1, "nerf_max_freqs": 4, "nerf_tile_size": 0,
            "nerf_final_head_type": "conv", "nerf_embedder_dtype": None, "use_x0": False,
            "use_sequential_txt_ids": False,
        },
        size=(3, 96, 128), attentions=4, **TEXT_FIRST,
    ),
    "ZImagePixelSpace": Case(
        {
            "image_model": "zimage_pixel", "in_channels": 3, "dim": 128, "n_layers": 2, "n_refiner_layers": 1,
            "n_heads": 2, "n_kv_heads": 1, "axes_dims": [16, 24, 24], "cap_feat_dim": 32, "qk_norm": True,
            "pad_tokens_multiple": 8, "patch_size": 16, "decoder_hidden_size": 32, "decoder_num_res_blocks": 1,
        },
        size=(3, 96, 128), keys=72, image=(24, None),
    ),
    "WAN22_WanDancer": Case(
        WAN | {"model_type": "wandancer", "num_layers": 2, "in_dim": 36, "audio_inject_layers": [0]}, size=VIDEO,
        more=SEEN | {"clip_vision_output_ref": SimpleNamespace(penultimate_hidden_states=random(1, 4, 1280))},
    ),
    "WAN21_SCAIL2": Case(WAN | {"model_type": "scail2", "num_layers": 2, "in_dim": 20}, size=VIDEO, more=SEEN),
    "Anima": Case(
        COSMOS | {"image_model": "anima", "crossattn_emb_channels": 1024}, size=VIDEO, width=1024, keys=512,
        more={"t5xxl_ids": torch.arange(13), "t5xxl_weights": torch.ones(13)},
    ),
    "LTXAV": Case(
        LTX | {
            "image_model": "ltxav", "audio_in_channels": 128, "audio_cross_attention_dim": 128,
            "audio_attention_head_dim": 64, "audio_num_attention_heads": 2, "connector_attention_head_dim": 32,
            "connector_num_attention_heads": 1, "connector_num_layers": 1,
        },
        size=(128, 1, 6, 8), sound=(8, 5, 16), keys=1024, attentions=4, more={"unprocessed_ltxav_embeds": True},
    ),
}  # fmt: skip
