"""The workflow that turns a word into the words and prompts that erasing it needs; it needs no model."""

import dataclasses

from eraseanything_core.concepts.sampler import ConceptRequest, WordSource
from scripts.workflows.template import Template, node

WORD = "cat"
CARDS = {"sample_concepts": ("Find the words", "Synonyms, words to keep and prompts for one typed word.")}
SERVICE = ("words_from", "provider", "base_url", "model", "credential", "timeout")


def sample_concepts(concept: str = WORD) -> Template:
    """A word turned into its concept set, which is shown and saved."""
    service = WordSource()
    values = dataclasses.asdict(ConceptRequest(concept)) | {name: getattr(service, name) for name in SERVICE}
    values |= {"synonyms": "", "prompts_from": "templates"}
    graph = {
        "words": node("EraseAnything_ConceptSampler", **values),
        "save": node("EraseAnything_SaveConcepts", concepts=["words", 0], output_name=concept),
    }
    note = """Type a word and press Run. The node shows its synonyms, related words and prompts, and saves them.
Edit the file and load it with *Load Concepts*. No model and no network are needed."""
    return Template(graph, {"Word to concept set": ["words", "save"]}, note)
