"""The workflows on FLUX.1-dev, for a GPU."""

from scripts.graph import Graph
from scripts.workflows.template import Template, before_and_after, node, probed, sampled, sampled_keys

WORD = "cat"  # what the workflows erase until somebody types another word
HUGGING_FACE = "https://huggingface.co"
# As ComfyUI's own template for FLUX.1-dev names them; the frontend offers to download what is missing.
MODELS = {
    "flux1-dev.safetensors": ("diffusion_models", "Comfy-Org/flux1-dev/resolve/main/flux1-dev.safetensors"),
    "clip_l.safetensors": ("text_encoders", "comfyanonymous/flux_text_encoders/resolve/main/clip_l.safetensors"),
    "t5xxl_fp16.safetensors": (
        "text_encoders",
        "comfyanonymous/flux_text_encoders/resolve/main/t5xxl_fp16.safetensors",
    ),
    "ae.safetensors": ("vae", "Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae/ae.safetensors"),
}
NOTE = """Needs **FLUX.1-dev**. Files and where they go:

- `models/diffusion_models/flux1-dev.safetensors`
- `models/text_encoders/clip_l.safetensors`
- `models/text_encoders/t5xxl_fp16.safetensors`
- `models/vae/ae.safetensors`

"""
ERASER = f"flux_without_{WORD}.safetensors"  # what flux_1_erase writes into models/loras
MADE_BEFORE = f"Run the workflow *flux_1_erase* first: it writes `{ERASER}` into `models/loras`.\n\n"


def models(*files: str) -> dict:
    """The `_meta` of a loader: where its files can be downloaded."""
    entries = []
    for file in files:
        folder, path = MODELS[file]
        entries.append({"name": file, "url": f"{HUGGING_FACE}/{path}", "directory": folder})
    return {"_meta": {"models": entries}}


def loaders() -> Graph:
    """Nodes that load FLUX.1-dev."""
    diffusion, clip_l, t5, vae = MODELS
    return {
        "model": node("UNETLoader", unet_name=diffusion, weight_dtype="default") | models(diffusion),
        "clip": node("DualCLIPLoader", clip_name1=clip_l, clip_name2=t5, type="flux", device="default")
        | models(clip_l, t5),
        "vae": node("VAELoader", vae_name=vae) | models(vae),
    }


def question(prompt: str | list) -> Graph:
    """Nodes that ask FLUX.1-dev for a prompt."""
    return {
        "prompt": node("CLIPTextEncode", text=prompt, clip=["clip", 0]),
        **sampler_inputs("prompt", 0),
    }


def sampler_inputs(source: str, output: int) -> Graph:
    """Nodes between a conditioning and the sampler."""
    return {
        "empty": node("ConditioningZeroOut", conditioning=[source, output]),
        "guidance": node("FluxGuidance", conditioning=[source, output], guidance=3.5),
        "latent": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
    }


LOAD = {"1. Load FLUX.1-dev": ["model", "clip", "vae"]}
SAMPLER_INPUTS = ["empty", "guidance", "latent"]
ASK = ["prompt", *SAMPLER_INPUTS]


def erase() -> Template:
    """Erases one typed word, and shows it before and after."""
    graph = {
        **loaders(),
        "erase": node(
            "EraseAnything_EraseTrainer",
            model=["model", 0],
            clip=["clip", 0],
            vae=["vae", 0],
            concept=WORD,
            preset="balanced",
            output_name=ERASER.removesuffix(".safetensors"),
            seed=0,
        ),
        **before_and_after("erase"),
    }
    groups = {
        **LOAD,
        "2. Type a word, press Run": ["erase"],
        "3. Before (left) and after (right)": ["pictures", "report"],
    }
    note = """Type a word in group 2 and press Run. The words around it come from WordNet, without a network.
The trainer writes the LoRA into `models/loras`. For a thing or a relation the preset `quick` is enough."""
    return Template(graph, groups, NOTE + note)


def combine() -> Template:
    """Applies two saved erasers, each where the prompt is about its concept."""
    other = ERASER.replace(WORD, "dog")
    graph = {
        **loaders(),
        "combine": node(
            "EraseAnything_MultiEraseLoRA",
            model=["model", 0],
            clip=["clip", 0],
            file_1=ERASER,
            file_2=other,
        ),
        **question("a cat beside a dog on a sofa"),
        **sampled(["model", 0], "before"),
        **sampled(["combine", 0], "after"),
    }
    groups = {
        **LOAD,
        "2. Choose the erasers": ["combine"],
        "3. Before and after": [*ASK, *sampled_keys("before", "after")],
    }
    note = f"""Run the workflow *flux_1_erase* first, once for each word. This one expects `{ERASER}` and `{other}` in
`models/loras`. Choose your own files in group 2 and press Run."""
    return Template(graph, groups, NOTE + note)


def strength() -> Template:
    """Applies a saved eraser at half and at full strength."""
    shared = {"model": ["model", 0], "clip": ["clip", 0], "file": ERASER}
    strengths = {"half": 0.5, "full": 1.0}
    graph = {
        **loaders(),
        **question(f"a photo of a {WORD}"),
        **sampled(["model", 0], "before"),
    }
    for title, value in strengths.items():
        graph[f"strength {title}"] = node("EraseAnything_EraseStrength", title, **shared, strength=value)
        graph |= sampled([f"strength {title}", 0], title)
    groups = {
        **LOAD,
        "2. Choose the file and the strength": [f"strength {title}" for title in strengths],
        "3. Compare": [*ASK, *sampled_keys("before", *strengths)],
    }
    note = """Choose your file in group 2 and press Run. The first run measures the eraser, so that 0.5 is half of its
effect. This takes a while and is done once for each file."""
    return Template(graph, groups, NOTE + MADE_BEFORE + note)


def probe() -> Template:
    """Samples with a probe, and shows where a word is attended to."""
    graph = {
        **loaders(),
        "attention": node(
            "EraseAnything_AttentionProbe",
            model=["model", 0],
            clip=["clip", 0],
            prompt=f"a photo of a {WORD} on a sofa",
            concept=WORD,
        ),
        **sampler_inputs("attention", 1),
        **probed(),
    }
    groups = {
        **LOAD,
        "2. Watch a word": ["attention"],
        "3. Sample": [*SAMPLER_INPUTS, *sampled_keys("probed")],
        "4. Where the word acts": ["maps", "bars"],
    }
    note = """Type a prompt and a word of it in group 2 and press Run. The heat map shows where the picture attends to
the word. Nothing is trained, and the picture is the same as without the probe."""
    return Template(graph, groups, NOTE + note)


def templates() -> dict[str, Template]:
    """All of them, by file name."""
    return {
        "flux_1_erase": erase(),
        "flux_2_combine": combine(),
        "flux_3_strength": strength(),
        "flux_4_probe": probe(),
    }


# What the cards in the template browser say. There are no pictures: these workflows need a GPU and the real weights.
CARDS = {
    "flux_1_erase": ("Erase a word", "Type a word, train an eraser, see the picture before and after."),
    "flux_2_combine": ("Combine erasers", "Apply several saved erasers to one prompt."),
    "flux_3_strength": ("Set the strength", "Apply a saved eraser at half and at full strength."),
    "flux_4_probe": ("Watch a word", "See where a picture attends to a word of its prompt."),
}
