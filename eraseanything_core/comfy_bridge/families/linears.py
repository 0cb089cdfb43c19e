"""Which linears of a family can be trained, and by which role.

`*` in a path stands for a number or a part of a name, so one entry names a linear in every block. To add a family,
enter its class here by the name that `table.LAYOUTS` has, with the linears that its code sends text, image or both
through.
"""

from typing import NamedTuple

from ...lora.roles import Tokens


class Linears(NamedTuple):
    """Linears of one kind.

    Attributes:
        tokens: what they read.
        path: of the modules.
        holds: what one module makes: `q`, `k` or `v`; `qkv`, `kv`, fused in equal parts; `grouped qkv`, where q is as
            wide as the input and k and v share the rest; `qkv+`, where each is as wide as the input and others follow;
            `+mlp`, those that follow; empty, where it is neither.
    """

    tokens: Tokens
    path: str
    holds: str = ""


def separate(tokens: Tokens, q: str, k: str, v: str) -> tuple[Linears, ...]:
    """q, k and v in linears of their own; an empty path is none."""
    paths = {"q": q, "k": k, "v": v}
    return tuple(Linears(tokens, path, part) for part, path in paths.items() if path)


def cross(attention: str, k: str, v: str) -> tuple[Linears, ...]:
    """k and v of a cross-attention, which read the text; its q reads the image."""
    return separate("cross", "", f"{attention}.{k}", f"{attention}.{v}")


FLUX = (
    Linears("text", "double_blocks.*.txt_attn.qkv", "qkv"),
    Linears("image", "double_blocks.*.img_attn.qkv", "qkv"),
    Linears("shared", "single_blocks.*.linear1", "qkv+"),
)
FLUX_EMBEDDER = (Linears("embedder", "txt_in"),)
HUNYUAN = (
    *FLUX,
    Linears("refiner", "txt_in.individual_token_refiner.blocks.*.self_attn.qkv", "qkv"),
    Linears("embedder", "txt_in.input_embedder"),
)
LUMINA = (
    Linears("refiner", "context_refiner.*.attention.qkv", "grouped qkv"),
    Linears("embedder", "cap_embedder.1"),
    Linears("shared", "layers.*.attention.qkv", "grouped qkv"),
)
QWEN = (
    *separate(
        "text",
        "transformer_blocks.*.attn.add_q_proj",
        "transformer_blocks.*.attn.add_k_proj",
        "transformer_blocks.*.attn.add_v_proj",
    ),
    *separate(
        "image",
        "transformer_blocks.*.attn.to_q",
        "transformer_blocks.*.attn.to_k",
        "transformer_blocks.*.attn.to_v",
    ),
    Linears("embedder", "txt_in"),
)
OMNIGEN = (
    *separate("refiner", "context_refiner.*.attn.to_q", "context_refiner.*.attn.to_k", "context_refiner.*.attn.to_v"),
    Linears("embedder", "time_caption_embed.caption_embedder.1"),
)
PIXELDIT = (
    Linears("text", "patch_blocks.*.attn.qkv_y", "qkv"),
    Linears("image", "patch_blocks.*.attn.qkv_x", "qkv"),
    Linears("embedder", "y_embedder.proj"),
)
PREDICT2 = cross("blocks.*.cross_attn", "k_proj", "v_proj")
WAN_CLASSES = (
    "wan.ar_model.CausalWanModel",
    "wan.model.CameraWanModel",
    "wan.model.HumoWanModel",
    "wan.model.SCAIL2WanModel",
    "wan.model.SCAILWanModel",
    "wan.model.VaceWanModel",
    "wan.model.WanModel",
    "wan.model.WanModel_S2V",
    "wan.model_animate.AnimateWanModel",
    "wan.model_wandancer.WanDancerModel",
)
WAN = (
    *cross("blocks.*.cross_attn", "k", "v"),
    *cross("vace_blocks.*.cross_attn", "k", "v"),  # of VACE alone
    Linears("embedder", "text_embedding.0"),
    Linears("embedder", "text_embedding.2"),
)
UNET_PARTS = ("input_blocks.*.*", "middle_block.*", "output_blocks.*.*")


def _unet() -> tuple[Linears, ...]:
    linears: list[Linears] = []
    for part in UNET_PARTS:
        linears += cross(f"{part}.transformer_blocks.*.attn2", "to_k", "to_v")
    return tuple(linears)


TRAINED: dict[str, tuple[Linears, ...]] = {  # by the class's name in comfy.ldm
    "anima.model.Anima": PREDICT2,
    "aura.mmdit.MMDiT": (
        *separate("text", "double_layers.*.attn.w1q", "double_layers.*.attn.w1k", "double_layers.*.attn.w1v"),
        *separate("image", "double_layers.*.attn.w2q", "double_layers.*.attn.w2k", "double_layers.*.attn.w2v"),
        *separate("shared", "single_layers.*.attn.w1q", "single_layers.*.attn.w1k", "single_layers.*.attn.w1v"),
        Linears("embedder", "cond_seq_linear"),
    ),
    "boogu.model.BooguTransformer2DModel": (
        *separate(
            "text",
            "double_stream_layers.*.img_instruct_attn.processor.instruct_to_q",
            "double_stream_layers.*.img_instruct_attn.processor.instruct_to_k",
            "double_stream_layers.*.img_instruct_attn.processor.instruct_to_v",
        ),
        *separate(
            "image",
            "double_stream_layers.*.img_instruct_attn.processor.img_to_q",
            "double_stream_layers.*.img_instruct_attn.processor.img_to_k",
            "double_stream_layers.*.img_instruct_attn.processor.img_to_v",
        ),
        *separate(
            "shared",
            "single_stream_layers.*.attn.to_q",
            "single_stream_layers.*.attn.to_k",
            "single_stream_layers.*.attn.to_v",
        ),
        *OMNIGEN,
    ),
    "cascade.stage_c.StageC": (
        Linears("embedder", "clip_txt_mapper"),
        Linears("embedder", "down_blocks.*.*.kv_mapper.1"),
        Linears("embedder", "up_blocks.*.*.kv_mapper.1"),
    ),
    "chroma.model.Chroma": (*FLUX, *FLUX_EMBEDDER),
    "chroma_radiance.model.ChromaRadiance": (*FLUX, *FLUX_EMBEDDER),
    "cogvideo.model.CogVideoXTransformer3DModel": (
        *separate("shared", "blocks.*.q", "blocks.*.k", "blocks.*.v"),
        Linears("embedder", "patch_embed.text_proj"),
    ),
    "cosmos.model.GeneralDIT": (
        # Attention to itself, cross-attention and MLP are parts 0, 1 and 2 of every block.
        *cross("blocks.block*.blocks.1.block.attn", "to_k.0", "to_v.0"),
    ),
    "cosmos.predict2.MiniTrainDIT": PREDICT2,
    "ernie.model.ErnieImageModel": (
        *separate(
            "shared", "layers.*.self_attention.to_q", "layers.*.self_attention.to_k", "layers.*.self_attention.to_v"
        ),
        Linears("embedder", "text_proj"),
    ),
    "flux.model.Flux": (*FLUX, *FLUX_EMBEDDER),
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": (
        Linears("text", "blocks.*.attn.qkv_y", "qkv"),
        Linears("image", "blocks.*.attn.qkv_x", "qkv"),
        Linears("embedder", "t5_yproj"),
    ),
    "hidream.model.HiDreamImageTransformer2DModel": (
        *separate(
            "text",
            "double_stream_blocks.*.block.attn1.to_q_t",
            "double_stream_blocks.*.block.attn1.to_k_t",
            "double_stream_blocks.*.block.attn1.to_v_t",
        ),
        *separate(
            "image",
            "double_stream_blocks.*.block.attn1.to_q",
            "double_stream_blocks.*.block.attn1.to_k",
            "double_stream_blocks.*.block.attn1.to_v",
        ),
        *separate(
            "shared",
            "single_stream_blocks.*.block.attn1.to_q",
            "single_stream_blocks.*.block.attn1.to_k",
            "single_stream_blocks.*.block.attn1.to_v",
        ),
        Linears("embedder", "caption_projection.*.linear"),
    ),
    "hidream_o1.model.HiDreamO1Transformer": separate(
        "shared",
        "language_model.layers.*.self_attn.q_proj",
        "language_model.layers.*.self_attn.k_proj",
        "language_model.layers.*.self_attn.v_proj",
    ),
    "hunyuan_video.model.HunyuanVideo": HUNYUAN,
    "hydit.models.HunYuanDiT": (Linears("cross", "blocks.*.attn2.kv_proj", "kv"),),
    "ideogram4.model.Ideogram4Transformer2DModel": (
        Linears("shared", "layers.*.attention.qkv", "qkv"),
        Linears("embedder", "llm_cond_proj"),
    ),
    "joyimage.model.JoyImageTransformer3DModel": (
        Linears("text", "double_blocks.*.attn.txt_attn_qkv", "qkv"),
        Linears("image", "double_blocks.*.attn.img_attn_qkv", "qkv"),
        Linears("embedder", "condition_embedder.text_embedder.linear_1"),
        Linears("embedder", "condition_embedder.text_embedder.linear_2"),
    ),
    "kandinsky5.model.Kandinsky5": (
        *cross("visual_transformer_blocks.*.cross_attention", "to_key", "to_value"),
        *separate(
            "refiner",
            "text_transformer_blocks.*.self_attention.to_query",
            "text_transformer_blocks.*.self_attention.to_key",
            "text_transformer_blocks.*.self_attention.to_value",
        ),
        Linears("embedder", "text_embeddings.in_layer"),
    ),
    "krea2.model.SingleStreamDiT": (
        *separate(
            "refiner", "txtfusion.*_blocks.*.attn.wq", "txtfusion.*_blocks.*.attn.wk", "txtfusion.*_blocks.*.attn.wv"
        ),
        Linears("embedder", "txtmlp.1"),
        Linears("embedder", "txtmlp.3"),
        *separate("shared", "blocks.*.attn.wq", "blocks.*.attn.wk", "blocks.*.attn.wv"),
    ),
    "lens.model.LensTransformer2DModel": (
        Linears("text", "transformer_blocks.*.attn.txt_qkv", "qkv"),
        Linears("image", "transformer_blocks.*.attn.img_qkv", "qkv"),
        Linears("embedder", "txt_in"),
    ),
    "lightricks.model.LTXVModel": (
        *cross("transformer_blocks.*.attn2", "to_k", "to_v"),
        Linears("embedder", "caption_projection.linear_1"),
        Linears("embedder", "caption_projection.linear_2"),
    ),
    "lumina.model.NextDiT": LUMINA,
    "lumina.model.NextDiTPixelSpace": LUMINA,
    "mage_flow.model.MageFlowTransformer2DModel": QWEN,
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": (
        Linears("text", "joint_blocks.*.context_block.attn.qkv", "qkv"),
        Linears("image", "joint_blocks.*.x_block.attn.qkv", "qkv"),
        Linears("embedder", "context_embedder"),
    ),
    "modules.diffusionmodules.openaimodel.UNetModel": _unet(),
    "omnigen.omnigen2.OmniGen2Transformer2DModel": (
        *OMNIGEN,
        *separate("shared", "layers.*.attn.to_q", "layers.*.attn.to_k", "layers.*.attn.to_v"),
    ),
    "pixart.pixartms.PixArtMS": (
        Linears("cross", "blocks.*.cross_attn.kv_linear", "kv"),
        Linears("embedder", "y_embedder.y_proj.fc1"),
        Linears("embedder", "y_embedder.y_proj.fc2"),
    ),
    "pixeldit.model.PixDiT_T2I": PIXELDIT,
    "pixeldit.pid.PidNet": PIXELDIT,
    "qwen_image.model.QwenImageTransformer2DModel": QWEN,
    **dict.fromkeys(WAN_CLASSES, WAN),
}

# The first linear that reads the pooled vector of a prompt, where a family takes one; it is not trained.
POOLED: dict[str, str] = {  # by the class's name in comfy.ldm
    "cascade.stage_c.StageC": "clip_txt_pooled_mapper",
    "flux.model.Flux": "vector_in.in_layer",
    "hidream.model.HiDreamImageTransformer2DModel": "p_embedder.pooled_embedder.linear_1",
    "hunyuan_video.model.HunyuanVideo": "vector_in.in_layer",
    "hydit.models.HunYuanDiT": "extra_embedder.0",
    "kandinsky5.model.Kandinsky5": "pooled_text_embeddings.in_layer",
    "lumina.model.NextDiT": "clip_text_pooled_proj.1",
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": "y_embedder.mlp.0",
    "modules.diffusionmodules.openaimodel.UNetModel": "label_emb.0.0",
}
