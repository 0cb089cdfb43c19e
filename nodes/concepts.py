"""Nodes that make, save and load the words of a concept."""

import asyncio
import hashlib
from pathlib import Path

import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui

from ..eraseanything_core import files
from ..eraseanything_core.concepts import credentials, llm, sampler
from ..eraseanything_core.concepts.concept_set import CATEGORIES, ConceptSet
from ..eraseanything_core.concepts.prompts import words_of
from ..eraseanything_core.concepts.wordnet import POS
from .shared.inputs import ERASE_CONCEPTS, checked, seed

CATEGORY = "EraseAnything/concepts"


def user_folder() -> Path:
    """Where keys and answers are kept; ComfyUI does not serve it."""
    return Path(folder_paths.get_system_user_directory("erase"))


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "concepts"


def _word() -> list:
    request = sampler.Request("")
    return [
        io.String.Input("concept", default="", tooltip="The word or words to erase."),
        io.Combo.Input(
            "category",
            options=["auto", *CATEGORIES],
            tooltip="What kind of thing it is: it decides which meaning is taken, and the prompts.",
        ),
        io.Combo.Input(
            "part_of_speech", options=["auto", *POS], tooltip="Which part of speech is taken where a word has several."
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
            tooltip="Irrelevant words of each tier; each training step draws one of each.",
        ),
        seed("Equal seeds draw equal words from WordNet."),
    ]


def _service() -> list:
    service = sampler.Service()
    return [
        io.Combo.Input(
            "words_from",
            options=["auto", "offline", "llm"],
            tooltip="Who gives the irrelevant words. offline: WordNet, nothing is sent. llm: a language model. auto: "
            "the model if a key is stored under the credential's name, else WordNet.",
        ),
        io.Combo.Input(
            "prompts_from",
            options=["templates", "llm"],
            tooltip="llm: where a model gives the words, it also writes prompts, neighbours and the neutral phrase.",
        ),
        io.Combo.Input("provider", options=list(llm.PROVIDERS), tooltip="Whose address is taken if base_url is empty."),
        io.String.Input(
            "base_url", default="", tooltip="Address of the server, up to and with /v1. Empty: the provider's."
        ),
        io.String.Input("model", default=service.model, tooltip="Name of the model at that server."),
        io.String.Input(
            "credential",
            default=service.credential,
            tooltip="The name under which your key is stored, never the key: see the help page.",
        ),
        io.Int.Input(
            "timeout",
            default=int(service.timeout),
            min=1,
            max=600,
            tooltip="Seconds that one question may take, with all its retries.",
            advanced=True,
        ),
    ]


class ConceptSampler(io.ComfyNode):
    """Turns a word into the words and prompts that erasing it needs."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_ConceptSampler",
            display_name="Concept Sampler",
            category=CATEGORY,
            description="Turns a word into what erasing needs: synonyms, words that must survive, and prompts.",
            search_aliases=["synonyms", "irrelevant words", "wordnet", "concept"],
            inputs=[*_word(), *_service()],
            outputs=[
                ERASE_CONCEPTS.Output(display_name="concepts", tooltip="For training, saving and evaluating."),
                io.String.Output(display_name="json", tooltip="The same as JSON, for Load Concepts."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, concept=None, base_url=None, credential=None):
        try:
            if concept is not None and not concept.strip():
                return "the concept is empty: type the word to erase"
            if base_url:
                credentials.origin(base_url)
            if credential is not None:
                credentials.check_name(credential)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, words_from=None, credential=None, **_):
        """A key that is stored or taken away makes `auto` choose anew."""
        return words_from == "auto" and credential is not None and credentials.stored(credential, user_folder())

    @classmethod
    async def execute(cls, prompts_from, synonyms, **values):
        request = {
            name: values.pop(name) for name in ("concept", "category", "part_of_speech", "senses", "words", "seed")
        }
        request = sampler.Request(**request, synonyms=words_of(synonyms))
        service = sampler.Service(**values, prompts=prompts_from == "llm")
        found = await interruptible(sampler.sample(request, service, user_folder()))
        return io.NodeOutput(found, found.to_json(), ui=ui.PreviewText(found.text()))


async def interruptible(work):
    """Awaits the work, and ends it when the user stops the queue."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait([task], timeout=0.2))[0]:
            comfy.model_management.throw_exception_if_processing_interrupted()
        return task.result()
    finally:
        task.cancel()


class SaveConcepts(io.ComfyNode):
    """Writes a concept set to a file that people can read and edit."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_SaveConcepts",
            display_name="Save Concepts",
            category=CATEGORY,
            description="Saves the words of a concept as JSON into the folder output/concepts.",
            inputs=[
                ERASE_CONCEPTS.Input("concepts", tooltip="From Concept Sampler."),
                io.String.Input(
                    "output_name",
                    default="concepts",
                    tooltip="File name, without folder; an older file of that name is replaced.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file that was written.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, output_name=None):
        return checked(output_name, ".json")

    @classmethod
    def execute(cls, concepts, output_name):
        path = files.writable(output_folder(), output_name, ".json")
        files.replace(path, concepts.to_json().encode())
        return io.NodeOutput(str(path), ui=ui.PreviewText(f"saved {path.name}"))


class LoadConcepts(io.ComfyNode):
    """Reads a concept set that was saved, shared or written by hand."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="EraseAnything_LoadConcepts",
            display_name="Load Concepts",
            category=CATEGORY,
            description="Reads the words of a concept from JSON in the workflow or from a file.",
            inputs=[
                io.String.Input(
                    "source",
                    default='{"concept": "cat"}',
                    multiline=True,
                    tooltip="The JSON itself, which then travels with the workflow; or the name of a file in "
                    "output/concepts or input.",
                )
            ],
            outputs=[ERASE_CONCEPTS.Output(display_name="concepts", tooltip="For training, saving and evaluating.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, source=None):
        try:
            return source is None or bool(ConceptSet.from_json(written(source)))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, source=None):
        return hashlib.sha256(written(source).encode()).hexdigest() if source is not None else ""

    @classmethod
    def execute(cls, source):
        found = ConceptSet.from_json(written(source))
        return io.NodeOutput(found, ui=ui.PreviewText(found.text()))


def written(source: str) -> str:
    """The JSON itself, or the text of the file that is named.

    Raises:
        ValueError: no plain file name, or no such file.
    """
    if source.lstrip().startswith(("{", "[")):
        return source
    name = f"{files.check_name(source, '.json')}.json"
    for folder in (output_folder(), Path(folder_paths.get_input_directory())):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise ValueError(f"there is no file {name} in output/concepts or input: type JSON, or save a concept set first")


NODES = [ConceptSampler, SaveConcepts, LoadConcepts]
