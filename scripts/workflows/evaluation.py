"""The workflow that judges an eraser: it erases, draws four prompt sets before and after, and reports."""

from eraseanything_core.evaluation.prompt_sets import PromptRow, write_table
from lab.tinyflux.recipe import Cell, cells
from scripts.graph import Graph
from scripts.workflows.template import Template, node
from scripts.workflows.tinyflux import LOAD, NOTE, loaders, trained, trained_keys

ROWS = {"acc_e": 20, "acc_g": 20, "acc_ir": 18}  # pictures a cell; acc_e's prompts are attacked as well
TITLES = {"acc_e": "the concept", "acc_g": "a held-out synonym", "acc_ir": "the others", "attack": "attacked"}


def prompt_rows(cell: Cell, count: int) -> str:
    """A cell's first prompts as the text of a PromptSet."""
    rows = zip(cell.prompts[:count], cell.seeds, cell.concepts)
    return write_table([PromptRow(prompt, seed, 3.5, concept) for prompt, seed, concept in rows])


def drawn(name: str, prompt: list, rows: str, model: str, when: str) -> Graph:
    """Nodes that draw a list of prompts, at the seeds and guidances of a PromptSet.

    Args:
        name: of the prompt set.
        prompt: link to the prompts.
        rows: key of the PromptSet.
        model: key of the model.
        when: "before" or "after".
    """
    own = f"{name} {when}"
    return {
        f"text {own}": node("CLIPTextEncode", text=prompt, clip=["clip", 0]),
        f"guided {own}": node("FluxGuidance", conditioning=[f"text {own}", 0], guidance=[rows, 2]),
        f"sample {own}": node(
            "KSampler",
            model=[model, 0],
            seed=[rows, 1],
            steps=20,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            positive=[f"guided {own}", 0],
            negative=["empty", 0],
            latent_image=["one", 0],
            denoise=1.0,
        ),
        own: node("VAEDecode", samples=[f"sample {own}", 0], vae=["vae", 0]),
    }


def judged(name: str, prompt: list, rows: str) -> Graph:
    """A prompt set drawn before and after, and read."""
    return {
        **drawn(name, prompt, rows, "model", "before"),
        **drawn(name, prompt, rows, "erase", "after"),
        f"judge {name}": node(
            "EraseAnything_EraseJudge",
            TITLES[name],
            before=[f"{name} before", 0],
            after=[f"{name} after", 0],
            wanted=[rows, 3],
            judge="TinyFlux CNN",
            labels="",
            template="a photo of a {}",
            weights="",
            threshold=0.0,
            prompts=prompt,
            seeds=[rows, 1],
        ),
    }


def evaluation_graph(concept: str) -> Graph:
    """Erase, draw, judge, report."""
    graph = {**loaders(), **trained(concept)}
    graph["empty"] = node("CLIPTextEncode", text="", clip=["clip", 0])
    graph["one"] = node("EmptySD3LatentImage", width=96, height=96, batch_size=1)
    by_name = cells(concept, max(ROWS.values()))
    for name, count in ROWS.items():
        text = prompt_rows(by_name[name], count)
        graph[f"set {name}"] = node("EraseAnything_PromptSet", TITLES[name], file="none", text=text, first=0, count=0)
        graph |= judged(name, [f"set {name}", 0], f"set {name}")
    graph["attack"] = node(
        "EraseAnything_EraseAttack",
        prompt=["set acc_e", 0],
        concept=concept,
        attack="double",
        synonyms="",
        seed=0,
        count=1,
    )
    graph |= judged("attack", ["attack", 0], "set acc_e")
    answers = {name: [f"judge {name}", 0] for name in TITLES}
    graph["report"] = node(
        "EraseAnything_ErasureReport",
        strength=1.0,
        concept=concept,
        model=f"TinyFlux, {concept} erased",
        output_name=f"tinyflux_{concept}",
        **answers,
    )
    graph["grid"] = node("EraseAnything_ErasureGrid", before=["acc_e before", 0], after=["acc_e after", 0], columns=10)
    return graph


def evaluate(concept: str) -> Template:
    """The workflow with its groups."""
    graph = evaluation_graph(concept)
    groups = {
        **LOAD,
        "2. Train the eraser": trained_keys(),
        "3. Prompts": [*(f"set {name}" for name in ROWS), "attack", "empty", "one"],
        "4. Draw before and after": [],
        "5. Judge": [f"judge {name}" for name in TITLES],
        "6. Report": ["report", "grid"],
    }
    named = {key for keys in groups.values() for key in keys}
    groups["4. Draw before and after"] = [key for key in graph if key not in named]
    note = "Press Run. The report is written into `output/eraseanything`."
    return Template(graph, groups, NOTE + note)
