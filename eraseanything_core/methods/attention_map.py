"""The paper's training-free eraser (section 3): the concept's columns of the dual blocks' attention are deleted.

W @ v with columns of W set to zero is W @ (v with the same rows set to zero), so no matrix is needed.
"""

import torch.nn.functional as F
from torch import Tensor


def without_columns(v: Tensor, select: Tensor) -> Tensor:
    """Values [b, h, keys, d] with the rows of the selected text keys at zero.

    Args:
        select: [b, text tokens], one at each key whose column of the attention is deleted; text keys come first.
    """
    keep = 1 - F.pad(select, (0, v.shape[2] - select.shape[1]))  # b keys
    return v * keep[:, None, :, None].to(v)


def override(select: Tensor):
    """For `transformer_options["optimized_attention_override"]` of ComfyUI's Flux: deletes columns in dual blocks."""

    def attend(attention, q, k, v, heads, *args, transformer_options, **rest):
        if transformer_options["block_type"] == "double":
            v = without_columns(v, select)
        return attention(q, k, v, heads, *args, transformer_options=transformer_options, **rest)

    return attend
