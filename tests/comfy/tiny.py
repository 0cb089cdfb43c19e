"""Small random models of ComfyUI's own classes, for what must hold for any family."""

import comfy.model_patcher
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models as families
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import torch
from comfy import sd1_clip
from comfy.supported_models_base import ClipTarget

CPU = torch.device("cpu")
LINEAR = "torch.nn.Linear"
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
CONFIGS = {
    "SD15": UNET | {"model_channels": 32, "transformer_depth": [1, 2], "context_dim": 16, "adm_in_channels": None},
    "SDXL": UNET | {
        "model_channels": 64, "transformer_depth": [0, 2], "context_dim": 32, "num_classes": "sequential",
        "adm_in_channels": 16 + 6 * 256, "use_linear_in_transformer": True, "transformer_depth_output": [0, 0, 2, 2],
    },
    "SD3": {
        "input_size": None, "patch_size": 2, "in_channels": 16, "depth": 2, "num_blocks": 3, "adm_in_channels": 32,
        "context_embedder_config": {"target": LINEAR, "params": {"in_features": 4096, "out_features": 128}},
        "num_patches": 64, "pos_embed_max_size": 8, "qk_norm": "rms", "x_block_self_attn_layers": [0],
        "pos_embed_scaling_factor": None, "out_channels": 16,
    },
    "Chroma": CHROMA | {"image_model": "chroma", "in_channels": 64, "out_channels": 64},
    "QwenImage": {
        "image_model": "qwen_image", "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 2,
        "joint_attention_dim": 32, "axes_dims_rope": (16, 24, 24),
    },
    "Lumina2": {
        "image_model": "lumina2", "in_channels": 16, "dim": 128, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
        "n_kv_heads": 1, "axes_dims": [16, 24, 24], "cap_feat_dim": 32, "qk_norm": True,
        "pad_tokens_multiple": 8,
    },
    "AuraFlow": {
        "dim": 128, "n_layers": 3, "n_double_layers": 1, "n_heads": 2, "global_conddim": 128, "cond_seq_dim": 32,
        "max_seq": 64,
    },
    "WAN21_T2V": {
        "image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 64, "freq_dim": 64, "text_dim": 32,
        "num_heads": 2, "num_layers": 2,
    },
    "SVD_img2vid": UNET | {
        "model_channels": 64, "transformer_depth": [1, 1], "context_dim": 16, "adm_in_channels": 768,
        "num_classes": "sequential", "use_temporal_attention": True, "use_temporal_resblock": True,
        "video_kernel_size": [3, 1, 1], "merge_strategy": "learned_with_images",
    },
    "HunyuanDiT": {"image_model": "hydit", "depth": 2, "hidden_size": 64, "num_heads": 2},
}  # fmt: skip


def randomised(module: torch.nn.Module, seed: int):
    """ComfyUI's layers come uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        if "visual" in name:
            continue  # of Qwen's image encoder, which is large and never run
        tensor.requires_grad_(False)
        if tensor.ndim > 1:
            tensor.normal_(generator=generator).mul_(tensor[0].numel() ** -0.5)
        else:
            tensor.fill_(float(name.endswith("weight") or name.endswith("scale")))
    for name, tensor in module.named_buffers():
        if "pos_embed" in name:
            tensor.normal_(generator=generator)


def new_model(family: str) -> comfy.model_patcher.ModelPatcher:
    config = getattr(families, family)(CONFIGS[family])
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", CPU)
    randomised(model.diffusion_model, 0)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def new_clip(family: str) -> comfy.sd.CLIP:
    """A text encoder with ComfyUI's own tokenizers."""
    text = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 16}
    t5 = {"d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 6000}  # holds the short words' ids
    qwen = text | {"num_key_value_heads": 1, "num_hidden_layers": 1}
    options = {
        "clip_l_model_config": text, "clip_g_model_config": text, "t5xxl_model_config": t5,
        "qwen25_7b_model_config": qwen, "dtype": torch.float32,
    }  # fmt: skip
    target = {
        "SD15": ClipTarget(sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel),
        "SDXL": ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
        "SD3": ClipTarget(comfy.text_encoders.sd3_clip.SD3Tokenizer, comfy.text_encoders.sd3_clip.sd3_clip()),
        "QwenImage": ClipTarget(
            comfy.text_encoders.qwen_image.QwenImageTokenizer, comfy.text_encoders.qwen_image.te(torch.float32)
        ),
    }[family]
    clip = comfy.sd.CLIP(target, model_options=options)
    randomised(clip.cond_stage_model, 1)
    return clip
