"""Irrelevant words by a language model, through any server that speaks OpenAI's chat completions."""

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import files
from .answer import Answer, AnswerError, Question, check, parse, schema
from .credentials import OPENAI, origin

PROVIDERS = {
    "OpenAI": OPENAI,
    "OpenRouter": "https://openrouter.ai/api/v1",
    "Azure": "",  # https://NAME.openai.azure.com/openai/v1
    "Ollama": "http://127.0.0.1:11434/v1",
    "llama.cpp": "http://127.0.0.1:8080/v1",
    "vLLM": "http://127.0.0.1:8000/v1",
    "other": "",
}
KEYED = ("OpenAI", "OpenRouter", "Azure")  # answer nobody without a key
PROMPT_VERSION = 1  # part of the name of a kept answer: raise it when the words below change
SYSTEM = "You judge how English words relate in meaning. You answer with one JSON object and nothing else."
LARGEST = 1_000_000  # bytes of a response
RETRIES = 4  # on 429, 5xx and lost connections, with growing pauses


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
    """The answer to a question: a kept one, or the server's, which is asked a second time when it is unusable.

    Args:
        question: what is asked.
        server: who is asked.
        key: of the server; None when it needs none.
        folder: where answers are kept.

    Raises:
        ServerError: it cannot be reached, refuses, is too slow, or gave no usable answer twice.
    """
    messages = conversation(question)
    for last in (False, True):
        text = ""
        try:
            text = await asyncio.wait_for(complete(messages, question, server, key), server.timeout)
            found = parse(text)
            answer = check(found, question)
        except (TimeoutError, asyncio.TimeoutError):
            raise ServerError(f"{origin(server.base_url)} did not answer within {server.timeout:g} s") from None
        except AnswerError as reason:
            if last:
                where = f"{server.model} at {origin(server.base_url)}"
                raise ServerError(scrub(f"{where} gave no usable answer: {reason}", key)) from None
            messages = [*messages, *again(text, reason)]
        else:
            keep(found, question, server, folder)
            return answer


def conversation(question: Question) -> list[dict]:
    """The messages that ask a question."""
    asked = (
        f"The concept is {json.dumps(question.concept)}. As a person would judge, give {question.count} English words "
        'for each of three groups: "no_relation", words whose meaning has nothing to do with it; "far", words that are '
        'loosely tied to it; "mid", words that are clearly tied to it without meaning the same. Give each word its '
        "similarity to the concept, from 0 to 1. Take common single words, half for what can be seen and half for what "
        "cannot. Do not use these words or parts of them: "
        f"{json.dumps(list(question.erased), ensure_ascii=False)}. Answer in this form: "
        '{"no_relation": [{"word": "...", "score": 0.1}, ...], "far": [...], "mid": [...]'
    )
    more = (
        ', "prompts": [...], "neighbours": [...], "neutral": "..."}, where prompts are 6 short descriptions of '
        "pictures that each contain the concept in these very words, neighbours are 6 things of the same kind that "
        "must stay as they are, and neutral is a short phrase for what a picture should show in the concept's place."
    )
    user = asked + (more if question.prompts else "}.")
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def again(text: str, reason: AnswerError) -> list[dict]:
    """The messages that ask once more."""
    refused = f"That cannot be used: {reason}. Answer again, with the whole JSON object and nothing else."
    return [{"role": "assistant", "content": text[:2000] or "{}"}, {"role": "user", "content": refused}]


async def complete(messages: list[dict], question: Question, server: Server, key: str | None) -> str:
    """What the model writes, held to the schema where the server can do that.

    Raises:
        AnswerError: the response is no chat completion, too large or broken off.
        ServerError: the server refuses or cannot be reached.
    """
    import openai  # takes a second to import

    asked = {"model": server.model, "messages": messages}
    form = {"name": "words", "schema": schema(question), "strict": True}
    structured = asked | {"response_format": {"type": "json_schema", "json_schema": form}}
    settings = {"api_key": key or "none", "base_url": server.base_url, "max_retries": RETRIES}
    try:
        async with openai.AsyncOpenAI(**settings, timeout=server.timeout) as client:
            try:
                return await content(client, structured)
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                return await content(client, asked)
    except openai.APIError as error:
        raise ServerError(scrub(explain(error, server), key)) from None


async def content(client, asked: dict) -> str:
    """The text of a chat completion."""
    async with client.chat.completions.with_streaming_response.create(**asked) as response:
        body = await read(response)
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise AnswerError("the response is no chat completion") from None
    if not isinstance(text, str):
        raise AnswerError("the model wrote nothing")
    return text


async def read(response) -> bytes:
    """The body of a response, up to a size that no answer needs."""
    body = bytearray()
    try:
        async for part in response.iter_bytes():
            body += part
            if len(body) > LARGEST:
                raise AnswerError(f"the response is larger than {LARGEST:,} bytes")
    except AnswerError:
        raise
    except Exception as error:  # of the HTTP library, which openai does not wrap here
        raise AnswerError(f"the response broke off ({type(error).__name__})") from None
    return bytes(body)


def explain(error, server: Server) -> str:
    """One line about what went wrong and what to do."""
    import openai

    where = origin(server.base_url)
    match error:
        case openai.APITimeoutError():
            return f"{where} did not answer within {server.timeout:g} s"
        case openai.APIConnectionError():
            return f"{where} cannot be reached: check base_url, and that the server runs"
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return f"{where} refuses the credential: check its key"
        case openai.NotFoundError():
            return f"{where} has no model {server.model!r}, or no chat completions at {server.base_url}"
        case openai.RateLimitError():
            return f"{where} was asked too often or has no quota left, also after {RETRIES} more tries"
        case openai.InternalServerError():
            return f"{where} failed with status {error.status_code}, also after {RETRIES} more tries"
    return " ".join(f"{where} refuses the question: {error.message}".split())[:300]


def scrub(text: str, key: str | None) -> str:
    """The text without the key, should a server have sent it back."""
    return text.replace(key, "***") if key else text


# --- answers are kept, so that a graph runs again without a network


def kept_as(question: Question, server: Server, folder: Path) -> Path:
    """The file of an answer: by concept, model, version of the prompt, and what else was asked."""
    parts = json.dumps([asdict(question), server.model, PROMPT_VERSION])
    return folder / f"{hashlib.sha256(parts.encode()).hexdigest()[:32]}.json"


def recall(question: Question, server: Server, folder: Path) -> Answer | None:
    """A kept answer, unless there is none or it was damaged."""
    path = kept_as(question, server, folder)
    try:
        return check(json.loads(path.read_text(encoding="utf-8"))["answer"], question) if path.exists() else None
    except (ValueError, LookupError, TypeError):
        return None


def keep(found: dict, question: Question, server: Server, folder: Path):
    """Writes an answer to its file, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"concept": question.concept, "model": server.model, "prompt_version": PROMPT_VERSION, "answer": found}
    files.replace(kept_as(question, server, folder), json.dumps(about, indent=1).encode())
