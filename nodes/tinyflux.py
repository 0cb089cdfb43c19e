"""The loader of TinyFlux's text encoder; its other parts load with stock nodes."""

from typing import Any

import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy.sd1_clip import ClipTokenWeightEncoder
from comfy.text_encoders.flux import T5XXLTokenizer
from comfy_api.latest import io

from ..eraseanything_core.tinyflux.text import LENGTH, PAD, TinyTextEncoder


class Tokenizer:
    """ComfyUI's T5 tokenizer at TinyFlux's length.

    It has the methods that `comfy.sd.CLIP` calls; the weights come from T5's vocabulary alone.
    """

    def __init__(self, embedding_directory: str | None = None, tokenizer_data: dict | None = None) -> None:
        self.t5xxl = T5XXLTokenizer(tokenizer_data={"t5xxl_min_length": LENGTH})

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, list]:
        """Rows of (token, weight) under the name that the text encoder reads them by."""
        return {"t5xxl": self.t5xxl.tokenize_with_weights(text, return_word_ids, **kwargs)}

    def untokenize(self, token_weight_pair: list) -> list:
        """The pieces of a row, as T5's tokenizer has them."""
        return self.t5xxl.untokenize(token_weight_pair)

    def state_dict(self) -> dict:
        """Nothing of it is saved."""
        return {}


class ClipModel(TinyTextEncoder, ClipTokenWeightEncoder):
    """TinyFlux's text encoder behind the interface of ComfyUI's CLIP; prompt weights work as with T5."""

    special_tokens = {"end": 1, "pad": PAD}

    def __init__(
        self, width: int, pooled: int, device: Any = "cpu", dtype: Any = None, model_options: dict | None = None
    ) -> None:
        super().__init__(width, pooled)
        self.to(device=device, dtype=torch.float32)  # a few megabytes: half precision would save nothing
        self.dtypes = {torch.float32}

    def encode(self, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Context [rows, tokens, features] and pooled [rows, features] of token ids."""
        return self(torch.tensor(rows, device=self.embed.weight.device))

    def encode_token_weights(self, token_weight_pairs: dict[str, list]) -> Any:
        """Weights the encodings by how far they are from those of the empty prompt, as ComfyUI does for T5."""
        return super().encode_token_weights(token_weight_pairs["t5xxl"])

    def set_clip_options(self, options: dict) -> None:
        """CLIP's layer options do not exist here."""

    def reset_clip_options(self) -> None:
        """See `set_clip_options`."""

    def load_sd(self, state: dict[str, torch.Tensor]) -> Any:
        """Takes the weights of a file."""
        return self.load_state_dict(state, strict=False)


class Target:
    """What comfy.sd.CLIP builds from; the sizes are those of a file's weights."""

    clip = ClipModel
    tokenizer = Tokenizer

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.params = {"width": len(state["widen.weight"]), "pooled": len(state["pool.weight"])}


def own_file_first(names: list[str]) -> list[str]:
    """The text encoders with TinyFlux's own in front, which a new node then has chosen."""
    # The pack's folder of weights is one for all loaders, so its other files are listed as well.
    return sorted(names, key=lambda name: not name.endswith("tinyflux_text.safetensors"))


class TinyFluxTextLoader(io.ComfyNode):
    """Loads TinyFlux's text encoder, which no stock loader knows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_TinyFlux",
            display_name="Load TinyFlux Text Encoder",
            category="EraseAnything",
            search_aliases=["tinyflux", "tiny flux", "example model", "small model", "clip loader"],
            description="Loads the text encoder of TinyFlux, a small FLUX that runs on a CPU. The "
            "model and the autoencoder load with Load Diffusion Model and Load VAE.",
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=own_file_first(folder_paths.get_filename_list("text_encoders")),
                    tooltip="The file tinyflux_text.safetensors, which comes with the pack.",
                )
            ],
            outputs=[io.Clip.Output(tooltip="For CLIP Text Encode and the EraseAnything nodes.")],
        )

    @classmethod
    def execute(cls, text_encoder: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("text_encoders", text_encoder)
        state = comfy.utils.load_torch_file(path, safe_load=True)
        if "layers.0.near" not in state:
            raise ValueError(f"{text_encoder} is not TinyFlux's text encoder: choose tinyflux_text.safetensors")
        return io.NodeOutput(comfy.sd.CLIP(Target(state), state_dict=state))


NODES = [TinyFluxTextLoader]
