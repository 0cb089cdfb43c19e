"""Irrelevant words by a language model, through any server that speaks OpenAI's chat completions."""

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import files
from ..packages import require_package
from ..quoting import escaped, quoted
from .answer import Answer, AnswerError, Question, answer_schema, check, find_answer, json_objects
from .chat_client import RETRIES, ResponseError, open_client, read_body, read_text, server_reason
from .credentials import OPENAI, origin, scrub, scrub_values
from .network import NetworkError, Proxy, check_resolved, proxy_for

PROVIDERS = {
    "OpenAI": OPENAI,
    "OpenRouter": "https://openrouter.ai/api/v1",
    "Azure": "",  # https://NAME.openai.azure.com/openai/v1
    "Ollama": "http://127.0.0.1:11434/v1",
    "llama.cpp": "http://127.0.0.1:8080/v1",
    "vLLM": "http://127.0.0.1:8000/v1",
    "other": "",
}
NEED_A_KEY = ("OpenAI", "OpenRouter", "Azure")
PROMPT_VERSION = 1  # part of the name of a saved answer: raise it when the words below change
SYSTEM = "You judge how English words relate in meaning. You answer with one JSON object and nothing else."
# What servers say to a response_format that they do not know. A 500 is not waited for: it comes again.
FORMAT_REFUSALS = (400, 404, 422, 500, 501)
QUESTION = (
    "The concept is {concept}. As a person would judge, give {count} English words "
    'for each of three groups: "no_relation", words whose meaning has nothing to do with it; "far", words that are '
    'loosely tied to it; "mid", words that are clearly tied to it without meaning the same. Give each word its '
    "similarity to the concept, from 0 to 1. Take common single words, half for what can be seen and half for what "
    "cannot. Do not use these words or parts of them: {erased}. Answer in this form: "
)
FORM = '{"no_relation": [{"word": "...", "score": 0.1}, ...], "far": [...], "mid": [...]'
FORM_OF_PROMPTS = (
    ', "prompts": [...], "neighbours": [...], "neutral": "..."}, where prompts are 6 short descriptions of '
    "pictures that each contain the concept in these very words, neighbours are 6 things of the same kind that "
    "must stay as they are, and neutral is a short phrase for what a picture should show in the concept's place."
)
RETRY = "That cannot be used: {reason}. Answer again, with the whole JSON object and nothing else."

Message = dict[str, str]  # role and content of a chat message


class ServerError(RuntimeError):
    """A server that could not be asked; the message says what to do and never holds a key."""


@dataclass(frozen=True)
class Server:
    """Where a model is asked.

    Attributes:
        base_url: up to and with `/v1`.
        model: its name there.
        timeout: seconds for one question, with all its retries.
    """

    base_url: str
    model: str
    timeout: float = 60


async def ask(question: Question, server: Server, key: str | None, folder: Path) -> Answer:
    """The server's answer to a question. It is asked a second time when the first answer cannot be used.

    Args:
        question: what is asked.
        server: who is asked.
        key: of the server; None when it needs none.
        folder: where answers are saved.

    Raises:
        ServerError: it cannot be reached, refuses, is too slow, or gave no usable answer twice.
        MissingPackageError: the package openai is not installed.
    """
    where = f"{server.model} at {origin(server.base_url)}"
    chat = Chat(question, server, key)
    for is_last in (False, True):
        try:
            # What the model wrote is read within the time as well.
            entries, answer = await asyncio.wait_for(chat.answer(), server.timeout)
        except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
            raise ServerError(f"{origin(server.base_url)} did not answer within {server.timeout:g} s") from None
        except NetworkError as error:
            raise ServerError(str(error)) from None
        except AnswerError as reason:
            if is_last:
                raise ServerError(f"{escaped(where)} gave no usable answer: {reason}") from None
            chat.ask_again(reason)
        else:
            save_answer(entries, question, server, folder)
            return answer
    raise AssertionError("the last try returns or raises")


class Chat:
    """A question, and what was said about it so far.

    Attributes:
        messages: that are sent next.
        has_format: whether the server is asked to hold the model to the schema.
    """

    def __init__(self, question: Question, server: Server, key: str | None) -> None:
        self.question = question
        self.server = server
        self.key = key
        self.messages = first_messages(question)
        self.has_format = True
        self._text = ""

    async def answer(self) -> tuple[dict[str, Any], Answer]:
        """The model's answer to the messages, as it gave it and checked.

        Raises:
            AnswerError: it cannot be used.
            ServerError: the server refuses or cannot be reached.
        """
        self._text = ""
        body = await self._complete()
        # In a thread: reading a hostile text can take a second, in which ComfyUI would answer nobody.
        self._text = await asyncio.to_thread(read_text, body, self.key)
        return await asyncio.to_thread(self._read, self._text)

    def _read(self, text: str) -> tuple[dict[str, Any], Answer]:
        # JSON can spell a key in escapes, so what was parsed is scrubbed again.
        objects = scrub_values(json_objects(text), self.key)
        return find_answer(objects, self.question)

    def ask_again(self, reason: AnswerError) -> None:
        """Takes up why the last answer cannot be used."""
        self.messages = [*self.messages, *retry_messages(self._text, reason)]
        # A server may answer to a format that it does not know with an error in a 200.
        if isinstance(reason, ResponseError):
            self.has_format = False

    async def _complete(self) -> bytes:
        """The body of a chat completion, by the schema where the server can do that."""
        require_package("openai", used_by="Concept Sampler")
        import openai  # takes a second to import

        base_url = self.server.base_url.strip()
        proxy = proxy_for(base_url)
        # Behind a proxy it is the proxy that looks up the name.
        if proxy is None:
            await check_resolved(urlsplit(base_url).hostname or "")
        try:
            if self.has_format:
                try:
                    return await self._request(proxy)
                except openai.APIStatusError as error:
                    if error.status_code not in FORMAT_REFUSALS:
                        raise
                    self.has_format = False
            return await self._request(proxy)
        except openai.APIError as error:
            raise ServerError(explain(error, self.server, self.key, proxy)) from None

    async def _request(self, proxy: Proxy | None) -> bytes:
        """Sends the messages, and reads the body of the response."""
        body: dict[str, Any] = {"model": self.server.model, "messages": self.messages}
        if self.has_format:
            json_schema = {"name": "words", "schema": answer_schema(self.question), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": json_schema}
        final = FORMAT_REFUSALS if self.has_format else ()
        client = open_client(self.server.base_url.strip(), self.key, self.server.timeout, proxy, final)
        async with client:
            async with client.chat.completions.with_streaming_response.create(**body) as response:
                return await read_body(response.http_response)


def first_messages(question: Question) -> list[Message]:
    """The messages that ask a question."""
    concept = json.dumps(question.concept)
    erased = json.dumps(list(question.erased), ensure_ascii=False)
    text = QUESTION.format(concept=concept, count=question.count, erased=erased)
    text += FORM + (FORM_OF_PROMPTS if question.prompts else "}.")
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]


def retry_messages(text: str, reason: AnswerError) -> list[Message]:
    """The messages that follow an answer that cannot be used: the answer itself, and why."""
    # Some servers refuse a message without content.
    refused: Message = {"role": "assistant", "content": escaped(text, 2000) or "{}"}
    return [refused, {"role": "user", "content": RETRY.format(reason=reason)}]


def explain(error: Any, server: Server, key: str | None, proxy: Proxy | None) -> str:
    """One line about what went wrong and what to do.

    Args:
        error: openai's `APIError`.
        server: who was asked.
        key: is taken out of what the server says.
        proxy: through which it was asked.
    """
    import openai

    where = origin(server.base_url)
    message = f"{where} refuses the question"
    match error:
        case openai.APITimeoutError():
            return f"{where} did not answer within {server.timeout:g} s"
        case openai.APIConnectionError():
            road = f"that the proxy of {proxy.variable} and the server run" if proxy else "that the server runs"
            return f"{where} cannot be reached: check base_url, and {road}"
        case openai.AuthenticationError():
            # Without what the server says, which often is a part of the key.
            return f"{where} refuses the credential: check its key"
        case openai.PermissionDeniedError():
            message = f"{where} refuses the credential: check its key"
        case openai.NotFoundError():
            message = (
                f"{where} has no model {quoted(server.model)}, or no chat completions at {escaped(server.base_url)}"
            )
        case openai.RateLimitError():
            message = f"{where} was asked too often or has no quota left, also after {RETRIES} more tries"
        case openai.InternalServerError():
            message = f"{where} failed with status {error.status_code}, also after {RETRIES} more tries"
        case openai.APIStatusError() if error.response.has_redirect_location:
            target = quoted(scrub(error.response.headers["location"], key))
            return f"{where} sends on to {target}, which is not asked: type the address that is meant into base_url"
    reason = server_reason(error.response.content, key)
    return f"{message}: {reason}" if reason else message


# Answers are saved, so that a graph runs again without a network.


def answer_path(question: Question, server: Server, folder: Path) -> Path:
    """The file of an answer: by concept, server, model, version of the prompt, and what else was asked.

    Without the server, whoever runs one could put words into the sets of another that has a model of that name.
    """
    parts = json.dumps([asdict(question), server.base_url.strip().rstrip("/"), server.model, PROMPT_VERSION])
    return folder / f"{hashlib.sha256(parts.encode()).hexdigest()[:32]}.json"


def load_answer(question: Question, server: Server, folder: Path) -> Answer | None:
    """A saved answer; None when there is none or its file was damaged."""
    path = answer_path(question, server, folder)
    if not path.exists():
        return None
    try:
        return check(json.loads(path.read_text(encoding="utf-8"))["answer"], question)
    except (ValueError, LookupError, TypeError):
        return None


def save_answer(entries: dict[str, Any], question: Question, server: Server, folder: Path) -> None:
    """Writes an answer to its file, whole or not at all.

    Args:
        entries: the answer as the model gave it.
        question, server: what was asked, and who.
        folder: is made where there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "concept": question.concept,
        "server": origin(server.base_url),
        "model": server.model,
        "prompt_version": PROMPT_VERSION,
        "answer": entries,
    }
    files.write_atomic(answer_path(question, server, folder), json.dumps(content, indent=1).encode())
