"""The socket types that the nodes exchange; a type of ComfyUI is known by its name alone.

`LORA_MODEL` is ComfyUI's own, so its loaders take it. The others are of this pack.
"""

from comfy_api.latest import io

LORA_MODEL = io.Custom("LORA_MODEL")  # tensors by file key; ours also carry the header of the file
ERASE_SETTINGS = io.Custom("ERASE_SETTINGS")  # {field of training.config.EraseConfig: its value}
PICTURES = "pictures"  # in such settings: IMAGE [n, h, w, 3], which is no field
ERASE_CONCEPTS = io.Custom("ERASE_CONCEPTS")  # concepts.concept_set.ConceptSet
ERASE_ATTENTION = io.Custom("ERASE_ATTENTION")  # attention.hooks.ProbeHook, which holds the recordings
ERASE_JUDGE = io.Custom("ERASE_JUDGE")  # a judge with the label that means "shows the concept"
ERASE_ANSWERS = io.Custom("ERASE_ANSWERS")  # a judge's verdicts on pictures before and after
ERASE_QUALITY = io.Custom("ERASE_QUALITY")  # distances between pictures before and after
