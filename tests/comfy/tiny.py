"""Small random models of ComfyUI's own classes, for what must hold for any family."""

from pathlib import Path

import comfy.model_patcher
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models as families
import torch
from comfy import sd1_clip
from comfy.supported_models_base import ClipTarget
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tests.comfy.layouts import CASES, UNET

LLAMA = Path(comfy.text_encoders.__path__[0]) / "llama_tokenizer"
CPU = torch.device("cpu")
UNREAD = ("lyric_encoder", "audio_proj", "face_", "motion_encoder")  # parts of the names of large weights without use
OTHERS = {  # families that are refused
    "SVD_img2vid": UNET | {
        "model_channels": 64, "transformer_depth": [1, 1], "context_dim": 16, "adm_in_channels": 768,
        "num_classes": "sequential", "use_temporal_attention": True, "use_temporal_resblock": True,
        "video_kernel_size": [3, 1, 1], "merge_strategy": "learned_with_images",
    },
}  # fmt: skip


def randomised(module: torch.nn.Module, seed: int):
    """ComfyUI's layers come uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        if ".visual." in name:
            continue  # of Qwen's image encoder, which is large and never run
        tensor.requires_grad_(False)
        if any(part in name for part in UNREAD):
            tensor.zero_()
        elif tensor.ndim > 1:
            # Drawn in float32, so that a model in fewer bits has the same weights, rounded.
            drawn = torch.empty_like(tensor, dtype=torch.float32).normal_(generator=generator)
            tensor.copy_(drawn.mul_(tensor[0].numel() ** -0.5))
        else:
            tensor.fill_(float(name.endswith(("weight", "scale", "gamma"))))
    for name, tensor in module.named_buffers():
        if "pos_embed" in name or "inv_freq" in name:
            tensor.copy_(torch.empty_like(tensor, dtype=torch.float32).normal_(generator=generator))


def new_model(
    family: str, dtype=torch.float32, compute=None, operations=None, quant_config=None, **sizes
) -> comfy.model_patcher.ModelPatcher:
    """In a type of its weights, computed in another where ComfyUI casts them, with other linears or sizes if asked."""
    unet_config = (CASES[family].config if family in CASES else OTHERS[family]) | sizes
    config = getattr(families, family)(dict(unet_config))
    config.unet_config.update(unet_config)
    config.unet_config.pop("causal_ar", None)  # ComfyUI's own way with what only tells a checkpoint's family
    config.set_inference_dtype(dtype, compute)
    config.custom_operations = operations
    config.quant_config = quant_config
    model = config.get_model(dict(CASES[family].state) if family in CASES else {}, "", CPU)
    if hasattr(model.diffusion_model, "llm_adapter"):
        del model.diffusion_model.llm_adapter.blocks[1:]  # they have one size only
    randomised(model.diffusion_model, 0)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


def checkpoint() -> dict[str, torch.Tensor]:
    """What the tokenizers of Gemma and of Lens read of theirs, here the files of T5's and Llama's."""
    marked = Tokenizer.from_file(str(LLAMA / "tokenizer.json"))
    marked.add_special_tokens(["<|start|>", "<|channel|>", "<|message|>", "<|end|>"])
    pieces = (LLAMA.parent / "t5_pile_tokenizer" / "tokenizer.model").read_bytes()
    files = {"tokenizer_json": marked.to_str().encode()}
    files |= dict.fromkeys(("spiece_model", "gemma_spiece_model", "jina_spiece_model"), pieces)
    return {name: torch.frombuffer(bytearray(file), dtype=torch.uint8) for name, file in files.items()}


def new_clip(family: str, t5_width: int = 0) -> comfy.sd.CLIP:
    """A text encoder with ComfyUI's own tokenizers. T5 has all its words where it is given a small width."""
    text = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 16}
    t5 = {"d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 6000}  # holds the short words' ids
    t5 |= {"d_model": t5_width, "vocab_size": 33000} if t5_width else {}
    umt5 = t5 | {"d_model": 32, "vocab_size": 33000}
    qwen = text | {"num_key_value_heads": 1, "num_hidden_layers": 4}
    tapped = qwen | {"num_hidden_layers": 36}  # of which some are read in the middle
    names = ("llama", "qwen25_3b", "qwen25_7b", "qwen3_06b", "qwen3_2b", "qwen3vl_8b", "qwen3vl_32b", "gemma2_2b")
    options = {f"{name}_model_config": qwen for name in names}
    options |= {f"{name}_model_config": tapped for name in ("qwen3_4b", "qwen3vl_4b")} | {"umt5xxl_model_config": umt5}
    options |= {"clip_l_model_config": text, "clip_g_model_config": text, "t5xxl_model_config": t5}
    encoders, f32 = comfy.text_encoders, torch.float32
    target = {
        "Anima": (encoders.anima.AnimaTokenizer, encoders.anima.te(f32)),
        "Boogu": (encoders.boogu.BooguTokenizer, encoders.boogu.te(f32)),
        "Flux": (encoders.flux.FluxTokenizer, encoders.flux.flux_clip(dtype_t5=f32)),
        "Flux2": (encoders.flux.KleinTokenizer, encoders.flux.klein_te(f32)),
        "HiDream": (encoders.hidream.HiDreamTokenizer, encoders.hidream.hidream_clip(dtype_t5=f32, dtype_llama=f32)),
        "HiDreamO1": (encoders.hidream_o1.HiDreamO1Tokenizer, encoders.hidream_o1.HiDreamO1TE),
        "HunyuanVideo": (
            encoders.hunyuan_video.HunyuanVideoTokenizer,
            encoders.hunyuan_video.hunyuan_video_clip(f32),
        ),
        "HunyuanVideo15": (
            encoders.hunyuan_video.HunyuanVideo15Tokenizer,
            encoders.hunyuan_image.te(byt5=False, dtype_llama=f32),
        ),
        "Kandinsky5": (encoders.kandinsky5.Kandinsky5Tokenizer, encoders.kandinsky5.te(f32)),
        "Krea2": (encoders.krea2.Krea2Tokenizer, encoders.krea2.te(f32)),
        "LongCatImage": (encoders.longcat_image.LongCatImageTokenizer, encoders.longcat_image.te(f32)),
        "LTXV": (encoders.lt.LTXVT5Tokenizer, encoders.lt.ltxv_te(f32)),
        "Lumina2": (encoders.z_image.ZImageTokenizer, encoders.z_image.te(f32)),
        "MiniMaxH3": (encoders.minimax.MiniMaxH3Tokenizer, encoders.minimax.te(f32)),
        "Omnigen2": (encoders.omnigen2.Omnigen2Tokenizer, encoders.omnigen2.te(f32)),
        "Ovis": (encoders.ovis.OvisTokenizer, encoders.ovis.te(f32)),
        "PixArtSigma": (encoders.pixart_t5.PixArtTokenizer, encoders.pixart_t5.pixart_te(f32)),
        "PixelDiTT2I": (encoders.pixeldit.PixelDiTGemma2Tokenizer, encoders.pixeldit.pixeldit_te(f32)),
        "QwenImage": (encoders.qwen_image.QwenImageTokenizer, encoders.qwen_image.te(f32)),
        "SD15": (sd1_clip.SD1Tokenizer, sd1_clip.SD1ClipModel),
        "SD3": (encoders.sd3_clip.SD3Tokenizer, encoders.sd3_clip.sd3_clip()),
        "SDXL": (comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
        "WAN21_T2V": (encoders.wan.WanT5Tokenizer, encoders.wan.te(f32)),
    }[family]
    clip = comfy.sd.CLIP(ClipTarget(*target), tokenizer_data=checkpoint(), model_options=options | {"dtype": f32})
    if hasattr(clip.tokenizer, "llama"):  # transformers 5 loses its blanks with the class that ComfyUI takes
        clip.tokenizer.llama.tokenizer = PreTrainedTokenizerFast.from_pretrained(LLAMA)
    randomised(clip.cond_stage_model, 1)
    return clip
