"""Nodes that make, save and load the words of a concept."""

import asyncio
import hashlib
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.concepts import credentials, llm, ready_sets, sampler
from ..eraseanything_core.concepts.concept_set import CATEGORIES, MAX_JSON, ConceptSet
from ..eraseanything_core.concepts.matching import EMPTY
from ..eraseanything_core.concepts.prompts import words_of
from ..eraseanything_core.concepts.wordnet import POS
from ..eraseanything_core.quoting import quoted
from .shared.folders import concepts_folder, input_folder, user_folder
from .shared.inputs import CATEGORY_CONCEPTS, accepted, seed, valid_name
from .shared.types import ERASE_CONCEPTS

SOURCE = "source"  # the choice of Load Concepts that stands for what is typed there
READY = "ready: "  # before the names of the sets that the pack ships
SAVED = "saved: "  # before the names of the user's own
INTERRUPT_SECONDS = 0.2  # between two looks at whether the user stopped the queue
REQUEST_INPUTS = ("concept", "category", "part_of_speech", "senses", "words", "seed")


def _word_inputs() -> list[io.Input]:
    """What is asked for; the defaults are the core's."""
    request = sampler.ConceptRequest("")
    return [
        io.String.Input("concept", default="", tooltip="The word or words to erase."),
        io.Combo.Input(
            "category",
            options=["auto", *CATEGORIES],
            tooltip="What kind of thing it is; decides which meaning of the word is used, and the prompts.",
        ),
        io.Combo.Input(
            "part_of_speech", options=["auto", *POS], tooltip="Which part of speech to use if the word has several."
        ),
        io.Int.Input(
            "senses",
            default=request.senses,
            min=1,
            max=5,
            tooltip="How many of the word's meanings give synonyms, the most frequent first.",
        ),
        io.String.Input(
            "synonyms", default="", multiline=True, tooltip="Your own synonyms, separated by commas or lines."
        ),
        io.Int.Input(
            "words",
            default=request.words,
            min=1,
            max=6,
            tooltip="Irrelevant words per tier; each training step uses one of each tier.",
        ),
        seed("The same seed gives the same words from WordNet."),
    ]


def _source_inputs() -> list[io.Input]:
    """Who gives the irrelevant words; the defaults are the core's."""
    source = sampler.WordSource()
    return [
        io.Combo.Input(
            "words_from",
            options=["auto", "offline", "llm"],
            tooltip="Source of the irrelevant words. offline: WordNet, nothing is sent. llm: a language model. auto: "
            "the model if a key is stored under the credential's name, otherwise WordNet.",
        ),
        io.Combo.Input(
            "prompts_from",
            options=["templates", "llm"],
            tooltip="llm: the model that gives the words also writes the prompts, neighbours and the neutral phrase.",
        ),
        io.Combo.Input("provider", options=list(llm.PROVIDERS), tooltip="Whose address to use if base_url is empty."),
        io.String.Input(
            "base_url", default="", tooltip="Address of the server, up to and including /v1. Empty: the provider's."
        ),
        io.String.Input("model", default=source.model, tooltip="Name of the model at that server."),
        io.String.Input(
            "credential",
            default=source.credential,
            tooltip="The name under which your key is stored, never the key: see the help page.",
        ),
        io.Int.Input(
            "timeout",
            default=int(source.timeout),
            min=1,
            max=600,
            tooltip="Seconds that one question may take, retries included.",
            advanced=True,
        ),
    ]


class ConceptSampler(io.ComfyNode):
    """Turns a word into the words and prompts that erasing it needs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_ConceptSampler",
            display_name="Concept Sampler",
            category=CATEGORY_CONCEPTS,
            description="Turns a word into what erasing needs: synonyms, words that must survive, and prompts.",
            search_aliases=["synonyms", "irrelevant words", "wordnet", "concept"],
            inputs=[*_word_inputs(), *_source_inputs()],
            outputs=[
                ERASE_CONCEPTS.Output(display_name="concepts", tooltip="For training, saving and evaluating."),
                io.String.Output(display_name="json", tooltip="The same as JSON, for Load Concepts."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, concept: str | None = None, base_url: str | None = None, credential: str | None = None
    ) -> bool | str:
        if concept is not None and not concept.strip():
            return EMPTY
        # An empty address stands for the provider's, and None for a linked input.
        valid_address = accepted(credentials.origin, base_url) if base_url else True
        if valid_address is not True or credential is None:
            return valid_address
        return accepted(credentials.check_credential_name, credential)

    @classmethod
    def fingerprint_inputs(cls, words_from: str | None = None, credential: str | None = None, **_: Any) -> bool:
        """A key that is stored or taken away makes `auto` choose anew."""
        return words_from == "auto" and credential is not None and credentials.has_key(credential, user_folder())

    @classmethod
    async def execute(cls, prompts_from: str, synonyms: str, **values: Any) -> io.NodeOutput:
        request_values = {name: values.pop(name) for name in REQUEST_INPUTS}
        request = sampler.ConceptRequest(**request_values, synonyms=words_of(synonyms))
        source = sampler.WordSource(**values, prompts=prompts_from == "llm")
        concepts = await interruptible(sampler.sample(request, source, user_folder()))
        return io.NodeOutput(concepts, concepts.to_json(), ui=ui.PreviewText(concepts.text()))


async def interruptible(work: Coroutine[Any, Any, ConceptSet]) -> ConceptSet:
    """Awaits the work, and ends it when the user stops the queue."""
    task = asyncio.ensure_future(work)
    try:
        finished: set[asyncio.Task] = set()
        while not finished:
            finished, _ = await asyncio.wait([task], timeout=INTERRUPT_SECONDS)
            if not finished:
                comfy.model_management.throw_exception_if_processing_interrupted()
        return task.result()
    finally:
        task.cancel()


class SaveConcepts(io.ComfyNode):
    """Writes a concept set to a file that people can read and edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_SaveConcepts",
            display_name="Save Concepts",
            category=CATEGORY_CONCEPTS,
            description="Saves the words of a concept as JSON into the folder output/concepts.",
            inputs=[
                ERASE_CONCEPTS.Input("concepts", tooltip="From Concept Sampler."),
                io.String.Input(
                    "output_name",
                    default="concepts",
                    tooltip="File name, without folder; an existing file of that name is replaced.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name: str | None = None) -> bool | str:
        return valid_name(output_name, ".json")

    @classmethod
    def execute(cls, concepts: ConceptSet, output_name: str) -> io.NodeOutput:
        path = files.writable_path(concepts_folder(), output_name, ".json")
        files.write_atomic(path, concepts.to_json().encode())
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved {path.name}"))


class LoadConcepts(io.ComfyNode):
    """Reads a concept set that the pack ships, or that was saved, shared or written by hand."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EraseAnything_LoadConcepts",
            display_name="Load Concepts",
            category=CATEGORY_CONCEPTS,
            description="Reads the words of a concept: a ready set, a saved one, or JSON in the workflow.",
            search_aliases=["ready", "preset", "bokeh", "watermark", "plastic skin", "nudity"],
            inputs=[
                io.String.Input(
                    "source",
                    default='{"concept": "cat"}',
                    multiline=True,
                    tooltip="The JSON itself, which then travels with the workflow; or the name of a file in "
                    "output/concepts or input. Used if choice is source.",
                ),
                io.Combo.Input(
                    "choice",
                    options=choices(),
                    default=SOURCE,
                    optional=True,
                    tooltip=choice_tooltip(),
                ),
            ],
            outputs=[ERASE_CONCEPTS.Output(display_name="concepts", tooltip="For training, saving and evaluating.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, source: str | None = None, choice: str | None = SOURCE) -> bool | str:
        # A linked input has no value yet.
        is_linked = choice is None or (choice == SOURCE and source is None)
        return True if is_linked else accepted(read_concepts, source or "", choice or SOURCE)

    @classmethod
    def fingerprint_inputs(cls, source: str | None = None, choice: str | None = SOURCE) -> str:
        """An edited file is read anew."""
        if choice is None or (choice == SOURCE and source is None):
            return ""
        return hashlib.sha256(read_choice(source or "", choice).encode()).hexdigest()

    @classmethod
    def execute(cls, source: str, choice: str = SOURCE) -> io.NodeOutput:
        concepts = read_concepts(source, choice)
        return io.NodeOutput(concepts, ui=ui.PreviewText(shown_text(concepts, choice)))


def choice_tooltip() -> str:
    """What can be chosen, and what each ready set does."""
    lines = ["source: what is typed above. saved: a file of output/concepts. ready: a set of the pack."]
    lines += [f"{name}: {ready_sets.purpose(name)}" for name in ready_sets.names()]
    return "\n".join(lines)


def shown_text(concepts: ConceptSet, choice: str) -> str:
    """The set as people read it; of a ready one first what it does, which its file has as the source."""
    if not choice.startswith(READY):
        return concepts.text()
    return f"what it does: {concepts.source}\n{replace(concepts, source='the pack').text()}"


def choices() -> list[str]:
    """What Load Concepts lists: the typed source, the ready sets, and the files that Save Concepts wrote."""
    ready = [f"{READY}{name}" for name in ready_sets.names()]
    saved = [f"{SAVED}{path.stem}" for path in sorted(concepts_folder().glob("*.json")) if path.is_file()]
    return [SOURCE, *ready, *saved]


def read_concepts(source: str, choice: str = SOURCE) -> ConceptSet:
    """The concept set that is chosen, typed, or in the file that is named; raises ValueError where it is wrong."""
    return ConceptSet.from_json(read_choice(source, choice))


def read_choice(source: str, choice: str) -> str:
    """The JSON of what is chosen; see `read_source` for what is typed."""
    if choice.startswith(READY):
        return ready_sets.text(choice.removeprefix(READY))
    if choice.startswith(SAVED):
        return read_source(choice.removeprefix(SAVED))
    if choice != SOURCE:
        raise ValueError(f"choice is {quoted(choice)}: take one of the list")
    return read_source(source)


def read_source(source: str) -> str:
    """The JSON itself, or the text of the file that is named.

    Raises:
        ValueError: no plain file name, no such file, or a file that is too large.
    """
    if source.lstrip().startswith(("{", "[")):
        return source
    name = f"{files.check_name(source, '.json', 'the file name')}.json"
    for folder in (concepts_folder(), input_folder()):
        path = folder / name
        if not path.is_file():
            continue
        # ComfyUI checks inputs in its event loop, where reading a large file would hold up every user.
        if path.stat().st_size > 4 * MAX_JSON:
            raise ValueError(f"{name} is larger than {4 * MAX_JSON:,} bytes: is it a concept set?")
        try:
            return files.decode_text(path.read_bytes(), name)
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from error
    raise ValueError(f"there is no file {name} in output/concepts or input: type JSON, or save a concept set first")


NODES = [ConceptSampler, SaveConcepts, LoadConcepts]
