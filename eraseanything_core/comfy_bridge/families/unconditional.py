"""Linears outside of every attention that reads text: what ESD-u trains.

They are the MLPs of the blocks and, where the text has a cross-attention of its own, the attention of the image to
itself. A class without an entry has none that are linear, or was not looked at, and is refused by name.
"""

from .linears import UNET_PARTS, WAN_CLASSES, Linears


def whole(*paths: str) -> tuple[Linears, ...]:
    """Whole linears, by their paths as in `linears.TRAINED`."""
    return tuple(Linears("unconditional", path) for path in paths)


def under(blocks: tuple[str, ...], *names: str) -> tuple[Linears, ...]:
    """The linears of these names in each kind of block."""
    return whole(*(f"{block}.{name}" for block in blocks for name in names))


GATED_MLP = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
NUMBERED_MLP = ("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3")
FLUX = (
    *under(("double_blocks.*",), "img_mlp.0", "img_mlp.2", "txt_mlp.0", "txt_mlp.2"),
    Linears("unconditional", "single_blocks.*.linear1", "+mlp"),
    *whole("single_blocks.*.linear2"),
)
LUMINA = under(("noise_refiner.*", "layers.*"), *GATED_MLP)
QWEN = under(
    ("transformer_blocks.*.img_mlp", "transformer_blocks.*.txt_mlp"),
    "net.0.proj",
    "net.2",
)
PIXELDIT = under(("patch_blocks.*.mlp_x", "patch_blocks.*.mlp_y"), "w1", "w2", "w3")
PREDICT2 = under(
    ("blocks.*",),
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.output_proj",
    "mlp.layer1",
    "mlp.layer2",
)
WAN = under(("blocks.*",), "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0", "ffn.2")
ATTN1 = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")

UNCONDITIONAL: dict[str, tuple[Linears, ...]] = {  # by the class's name in comfy.ldm
    "anima.model.Anima": PREDICT2,
    "aura.mmdit.MMDiT": under(
        ("double_layers.*.mlpC", "double_layers.*.mlpX", "single_layers.*.mlp"), "c_fc1", "c_fc2", "c_proj"
    ),
    "boogu.model.BooguTransformer2DModel": (
        *under(("noise_refiner.*", "single_stream_layers.*"), *NUMBERED_MLP),
        *under(("double_stream_layers.*",), *(f"img_{name}" for name in NUMBERED_MLP)),
        *under(("double_stream_layers.*",), *(f"instruct_{name}" for name in NUMBERED_MLP)),
    ),
    "chroma.model.Chroma": FLUX,
    "chroma_radiance.model.ChromaRadiance": FLUX,
    "cogvideo.model.CogVideoXTransformer3DModel": under(("blocks.*",), "ff_proj", "ff_out"),
    "cosmos.model.GeneralDIT": (
        *under(("blocks.block*.blocks.0.block.attn",), "to_q.0", "to_k.0", "to_v.0", "to_out.0"),
        *under(("blocks.block*.blocks.2.block",), "layer1", "layer2"),
    ),
    "cosmos.predict2.MiniTrainDIT": PREDICT2,
    "ernie.model.ErnieImageModel": under(("layers.*.mlp",), "gate_proj", "up_proj", "linear_fc2"),
    "flux.model.Flux": FLUX,
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": under(("blocks.*.mlp_x", "blocks.*.mlp_y"), "w1", "w2"),
    # Without its experts: a picture goes through some of them only, and the others would get no gradient.
    "hidream.model.HiDreamImageTransformer2DModel": under(
        (
            "double_stream_blocks.*.block.ff_i.shared_experts",
            "double_stream_blocks.*.block.ff_t",
            "single_stream_blocks.*.block.ff_i.shared_experts",
        ),
        "w1",
        "w2",
        "w3",
    ),
    "hidream_o1.model.HiDreamO1Transformer": under(
        ("language_model.layers.*.mlp",), "gate_proj", "up_proj", "down_proj"
    ),
    "hunyuan_video.model.HunyuanVideo": FLUX,
    "hydit.models.HunYuanDiT": under(("blocks.*",), "attn1.Wqkv", "attn1.out_proj", "mlp.fc1", "mlp.fc2"),
    "ideogram4.model.Ideogram4Transformer2DModel": under(("layers.*",), *GATED_MLP),
    "joyimage.model.JoyImageTransformer3DModel": under(
        ("double_blocks.*.img_mlp", "double_blocks.*.txt_mlp"), "net.0.proj", "net.2"
    ),
    "kandinsky5.model.Kandinsky5": under(
        ("visual_transformer_blocks.*",),
        "self_attention.to_query",
        "self_attention.to_key",
        "self_attention.to_value",
        "self_attention.out_layer",
        "feed_forward.in_layer",
        "feed_forward.out_layer",
    ),
    "krea2.model.SingleStreamDiT": under(("blocks.*.mlp",), "gate", "up", "down"),
    "lens.model.LensTransformer2DModel": under(
        ("transformer_blocks.*.img_mlp", "transformer_blocks.*.txt_mlp"), "w1", "w2", "w3"
    ),
    "lightricks.model.LTXVModel": under(("transformer_blocks.*",), *ATTN1),
    "lumina.model.NextDiT": LUMINA,
    "lumina.model.NextDiTPixelSpace": LUMINA,
    "mage_flow.model.MageFlowTransformer2DModel": QWEN,
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": under(
        ("joint_blocks.*.context_block.mlp", "joint_blocks.*.x_block.mlp"), "fc1", "fc2"
    ),
    "modules.diffusionmodules.openaimodel.UNetModel": under(
        tuple(f"{part}.transformer_blocks.*" for part in UNET_PARTS), *ATTN1
    ),
    "omnigen.omnigen2.OmniGen2Transformer2DModel": under(("noise_refiner.*", "layers.*"), *NUMBERED_MLP),
    "pixart.pixartms.PixArtMS": under(("blocks.*",), "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"),
    "pixeldit.model.PixDiT_T2I": PIXELDIT,
    "pixeldit.pid.PidNet": PIXELDIT,
    "qwen_image.model.QwenImageTransformer2DModel": QWEN,
    **dict.fromkeys(WAN_CLASSES, WAN),
}
