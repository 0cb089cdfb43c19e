"""Which text encoder a family takes, and whether a CLIP is one.

Several families take states of one width from encoders or templates that differ, so the width alone does not tell a
CLIP of another family. ComfyUI's tokenizers do: each family has a module of them.
"""

from typing import Any

from comfy.model_patcher import ModelPatcher

from . import family

PURE_T5 = ("pixart_t5", "genmo", "lt", "cogvideo")  # T5-XXL alone, whose tokenizers differ in padding
# Families whose tokenizers ComfyUI's configuration does not name, or names one of several.
TOKENIZERS: dict[str, tuple[str, ...]] = {
    "Flux2": ("flux",),
    "FluxSchnell": ("ovis",),  # FLUX.1 has a road of its own, so what comes here is Ovis-Image
    "HiDream": ("hidream",),
    "Lumina2": ("lumina2", "newbie", "z_image"),  # the width tells them apart
}
LOADED_AS = {  # by the module of the tokenizer: the text encoder, and its type in the loaders
    "anima": "Qwen3-0.6B of Anima",
    "aura_t5": "Pile-T5-XL of AuraFlow",
    "boogu": "Qwen3-VL-8B loaded as type boogu",
    "cogvideo": "T5-XXL loaded as type cogvideox",
    "cosmos": "the old T5-XXL loaded as type cosmos",
    "ernie": "Ministral-3-3B of ERNIE-Image",
    "flux": "Qwen3 (Klein) or Mistral-3 (dev) loaded as type flux2",
    "genmo": "T5-XXL loaded as type mochi",
    "gpt_oss": "gpt-oss-20b loaded as type lens",
    "hidream": "T5-XXL and Llama-3.1-8B loaded as type hidream",
    "hidream_o1": "the tokenizer of HiDream-O1's checkpoint",
    "hunyuan_image": "Qwen2.5-VL-7B loaded as type hunyuan_image",
    "hunyuan_video": "the text encoders loaded as type hunyuan_video or hunyuan_video_15",
    "hydit": "the text encoders of Hunyuan-DiT's checkpoint",
    "ideogram4": "Qwen3-VL-8B loaded as type ideogram4",
    "joyimage": "Qwen3-VL-8B loaded as type joyimage",
    "kandinsky5": "Qwen2.5-VL-7B and CLIP-L loaded as type kandinsky5",
    "krea2": "Qwen3-VL-4B loaded as type krea2",
    "longcat_image": "Qwen2.5-VL-7B loaded as type longcat_image",
    "lt": "T5-XXL loaded as type ltxv",
    "lumina2": "Gemma-2-2B loaded as type lumina2",
    "mage_flow": "Qwen3-VL-4B loaded as type mage",
    "newbie": "Gemma-3-4B and Jina CLIP loaded as type newbie",
    "omnigen2": "Qwen2.5-VL-3B loaded as type omnigen2",
    "ovis": "Qwen3-2B loaded as type ovis",
    "pixart_t5": "T5-XXL loaded as type chroma or pixart",
    "pixeldit": "Gemma-2-2B loaded as type pixeldit",
    "qwen_image": "Qwen2.5-VL-7B loaded as type qwen_image",
    "sd1_clip": "CLIP-L of Stable Diffusion 1",
    "sd2_clip": "CLIP-H of Stable Diffusion 2",
    "sd3_clip": "the text encoders loaded as type sd3",
    "sdxl_clip": "CLIP-L and CLIP-G loaded as type sdxl",
    "wan": "UMT5-XXL loaded as type wan",
    "z_image": "Qwen3-4B loaded as type lumina2",
}


def check_encoder(clip: Any, model: ModelPatcher) -> None:
    """Refuses a CLIP of another family.

    Args:
        clip: CLIP of a text encoder's loader.
        model: MODEL that the prompts are for.

    Raises:
        ValueError: its tokenizer is that of another family.
    """
    own = _module(type(clip.tokenizer))
    wanted = wanted_tokenizers(model)
    if own and wanted and own not in wanted:
        raise ValueError(
            f"this CLIP is {LOADED_AS.get(own, own)}, and a MODEL of {family(model)} takes "
            f"{LOADED_AS.get(wanted[0], wanted[0])}: connect that"
        )


def wanted_tokenizers(model: ModelPatcher) -> tuple[str, ...]:
    """Modules of the tokenizers that a MODEL's prompts may come from, the usual one first; empty where none is known.

    Args:
        model: of any family.
    """
    config = model.model.model_config
    name = type(config).__name__
    if name in TOKENIZERS:
        return TOKENIZERS[name]
    # Without a checkpoint's text encoder in it, an empty state gives the family's usual one.
    target = config.clip_target({})
    if target is None:
        return ()
    module = _module(target.tokenizer)
    return (module, *PURE_T5) if module in PURE_T5 else (module,)


def _module(tokenizer: type) -> str:
    """The last part of the name of ComfyUI's module; empty for a tokenizer that is not ComfyUI's."""
    package, _, module = tokenizer.__module__.rpartition(".")
    return module if package.partition(".")[0] == "comfy" else ""
