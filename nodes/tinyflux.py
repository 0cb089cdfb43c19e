"""The loader of TinyFlux's text encoder; its other parts load with stock nodes."""

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.sd1_clip import ClipTokenWeightEncoder
from comfy.text_encoders.flux import T5XXLTokenizer
from comfy_api.latest import io

from ..eraseanything_core.tinyflux.text import LENGTH, PAD, TextEncoder


class Tokenizer:
    """ComfyUI's T5 tokenizer at TinyFlux's length."""

    def __init__(self, embedding_directory=None, tokenizer_data=None):
        self.t5xxl = T5XXLTokenizer(tokenizer_data={"t5xxl_min_length": LENGTH})

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        return {"t5xxl": self.t5xxl.tokenize_with_weights(text, return_word_ids, **kwargs)}

    def untokenize(self, token_weight_pair):
        return self.t5xxl.untokenize(token_weight_pair)

    def state_dict(self):
        return {}


class ClipModel(TextEncoder, ClipTokenWeightEncoder):
    """TinyFlux's text encoder behind the interface of ComfyUI's CLIP; prompt weights work as with T5."""

    special_tokens = {"end": 1, "pad": PAD}

    def __init__(self, device="cpu", dtype=None, model_options=None):
        super().__init__()
        self.to(device=device, dtype=torch.float32)
        self.dtypes = {torch.float32}

    def encode(self, rows):
        return self(torch.tensor(rows, device=self.embed.weight.device))

    def encode_token_weights(self, token_weight_pairs):
        return super().encode_token_weights(token_weight_pairs["t5xxl"])

    def set_clip_options(self, options):
        pass

    def reset_clip_options(self):
        pass

    def load_sd(self, state):
        return self.load_state_dict(state, strict=False)


class Target:
    """What comfy.sd.CLIP builds from."""

    params: dict = {}
    clip = ClipModel
    tokenizer = Tokenizer


class TinyFluxTextLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_TinyFlux",
            display_name="Load TinyFlux Text Encoder",
            category="EraseAnything",
            description="Loads the text encoder of TinyFlux, the small Flux that this pack is proven on. The model and "
            "the autoencoder load with Load Diffusion Model and Load VAE.",
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=folder_paths.get_filename_list("text_encoders"),
                    tooltip="The file tinyflux_text.safetensors in models/text_encoders.",
                )
            ],
            outputs=[io.Clip.Output(tooltip="For CLIP Text Encode and the EraseAnything nodes.")],
        )

    @classmethod
    def execute(cls, text_encoder) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("text_encoders", text_encoder)
        state = comfy.utils.load_torch_file(path, safe_load=True)
        if "layers.0.near" not in state:
            raise ValueError(f"{text_encoder} is not TinyFlux's text encoder: choose tinyflux_text.safetensors")
        return io.NodeOutput(comfy.sd.CLIP(Target, state_dict=state))


NODES = [TinyFluxTextLoader]
