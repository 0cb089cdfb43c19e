"""The models of ComfyUI whose code makes it certain where the text stands among the keys of each attention.

They go by the names of their classes: a ComfyUI that lacks some of them can still use the others. To add a family,
write its function in `joint_families` or `cross_families`, enter it here, and give tests/comfy/layouts.py a case.
"""

from collections.abc import Callable
from typing import Any

from . import cross_families as cross
from . import joint_families as joint
from .cross_attention import CrossAttention
from .joint_attention import JointAttention

Layout = JointAttention | CrossAttention

LAYOUTS: dict[str, Callable[[Any], Layout]] = {  # by the class's name in comfy.ldm
    "ace.ace_step15.AceStepConditionGenerationModel": cross.ace_step_15,
    "ace.model.ACEStepTransformer2DModel": cross.ace_step,
    "anima.model.Anima": cross.cosmos_predict2,
    "audio.dit.AudioDiffusionTransformer": cross.stable_audio,
    "aura.mmdit.MMDiT": joint.aura_flow,
    "boogu.model.BooguTransformer2DModel": joint.boogu,
    "cascade.stage_c.StageC": joint.stable_cascade,
    "chroma.model.Chroma": joint.flux,
    "chroma_radiance.model.ChromaRadiance": joint.flux,
    "cogvideo.model.CogVideoXTransformer3DModel": joint.cogvideo,
    "cosmos.model.GeneralDIT": cross.cosmos,
    "cosmos.predict2.MiniTrainDIT": cross.cosmos_predict2,
    "ernie.model.ErnieImageModel": joint.ernie,
    "flux.model.Flux": joint.flux,
    "genmo.joint_model.asymm_models_joint.AsymmDiTJoint": joint.mochi,
    "hidream.model.HiDreamImageTransformer2DModel": joint.hidream,
    "hidream_o1.model.HiDreamO1Transformer": joint.hidream_o1,
    "hunyuan_video.model.HunyuanVideo": joint.hunyuan_video,
    "hydit.models.HunYuanDiT": cross.hunyuan_dit,
    "ideogram4.model.Ideogram4Transformer2DModel": joint.ideogram,
    "joyimage.model.JoyImageTransformer3DModel": joint.joy_image,
    "kandinsky5.model.Kandinsky5": cross.kandinsky,
    "krea2.model.SingleStreamDiT": joint.krea,
    "lens.model.LensTransformer2DModel": joint.lens,
    "lightricks.av_model.LTXAVModel": cross.ltx_audio_video,
    "lightricks.model.LTXVModel": cross.ltx_video,
    "lumina.model.NextDiT": joint.lumina,
    "lumina.model.NextDiTPixelSpace": joint.lumina,
    "mage_flow.model.MageFlowTransformer2DModel": joint.mage_flow,
    "minimax.model.MiniMaxH3Model": joint.minimax,
    "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": joint.sd3,
    "modules.diffusionmodules.openaimodel.UNetModel": cross.unet,
    "omnigen.omnigen2.OmniGen2Transformer2DModel": joint.omnigen,
    "pixart.pixartms.PixArtMS": cross.pixart,
    "pixeldit.model.PixDiT_T2I": joint.pixeldit,
    "pixeldit.pid.PidNet": joint.pixeldit,
    "qwen_image.model.QwenImageTransformer2DModel": joint.qwen_image,
    "wan.ar_model.CausalWanModel": cross.wan_causal,
    "wan.model.CameraWanModel": cross.wan,
    "wan.model.HumoWanModel": cross.wan,
    "wan.model.SCAIL2WanModel": cross.wan,
    "wan.model.SCAILWanModel": cross.wan,
    "wan.model.VaceWanModel": cross.wan,
    "wan.model.WanModel": cross.wan,
    "wan.model.WanModel_S2V": cross.wan,
    "wan.model_animate.AnimateWanModel": cross.wan,
    "wan.model_wandancer.WanDancerModel": cross.wan,
}
