"""openai's client, kept to one server: it sends what that server needs and reads no more than an answer needs.

By itself the client takes headers, proxies and certificates from the environment, follows redirects to wherever they
lead, and reads an error of any length. A graph may name any address, so none of that holds for it.
"""

import json
import os
import re
import zlib
from collections.abc import AsyncIterator, Collection
from typing import Any
from urllib.parse import urlsplit

from ..packages import require_package
from ..quoting import escaped, quoted
from .answer import AnswerError
from .credentials import OPENAI, CredentialError, origin, scrub
from .network import NetworkError, Proxy, tls_context

RETRIES = 4  # on 429, 5xx and lost connections, with growing pauses
MAX_RESPONSE = 1_000_000  # bytes
MAX_ERROR = 64 * 1024  # bytes of an error that are read
MAX_PAGE = 16 * 1024  # characters of a page in which a reason is looked for
MAX_REASON = 150  # characters of a server's reason that are shown
MAX_REDIRECTS = 3  # within one server
HEADER_VARIABLES = ("OPENAI_CUSTOM_HEADERS", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID")  # that openai reads by itself
OWN_SETTINGS = ("openai-organization", "openai-project")  # of OPENAI_ORG_ID and OPENAI_PROJECT_ID; for OpenAI alone
TAG = re.compile(r"<(?:style|script)\b.*?</(?:style|script)>|<[^>]*>", re.DOTALL | re.IGNORECASE)


class ResponseError(AnswerError):
    """A response that is no chat completion: the server failed, and not the model."""


def open_client(
    base_url: str, key: str | None, timeout: float, proxy: Proxy | None, final_statuses: Collection[int] = ()
) -> Any:
    """An `openai.AsyncOpenAI`, to be used with `async with`.

    Args:
        base_url: up to and with `/v1`.
        key: is sent as a bearer token; None sends none.
        timeout: seconds for one request.
        proxy: see `network.proxy_for`.
        final_statuses: statuses after which a request is not tried again.

    Raises:
        MissingPackageError: the package openai is not installed.
        NetworkError: the environment names certificates or headers that cannot be used.
    """
    check_environment()
    require_package("openai", used_by="Concept Sampler")
    import openai  # takes a second to import

    home = origin(base_url)

    class GuardedClient(openai.DefaultAsyncHttpxClient):
        """Sends to one origin."""

        async def send(self, request: Any, **_: Any) -> Any:
            """Called by openai for every try; see `httpx.AsyncClient.send`."""
            allowed = self.build_request(
                request.method,
                request.url,
                headers=allowed_headers(request.headers, home, key),
                content=request.content,
                extensions=request.extensions,
            )
            response = await super().send(allowed, stream=True)
            for _redirect in range(MAX_REDIRECTS):
                following = response.next_request
                if following is None or not is_at(str(following.url), home):
                    break
                await response.aclose()
                response = await super().send(following, stream=True)
            # openai reads from its own request in which form it shall hand over the response.
            response.request = request
            if response.is_success:
                return response
            return await bounded_error(response, final_statuses)

    return openai.AsyncOpenAI(
        # The client refuses to start without a key, also for servers that need none. `allowed_headers` drops this one.
        api_key=key or "none",
        base_url=base_url,
        max_retries=RETRIES,
        timeout=timeout,
        http_client=GuardedClient(**httpx_options(base_url, timeout, proxy)),
    )


def httpx_options(base_url: str, timeout: float, proxy: Proxy | None) -> dict[str, Any]:
    """What httpx is told, instead of reading it from the environment by itself."""
    options: dict[str, Any] = {"trust_env": False, "follow_redirects": False, "timeout": timeout}
    context = tls_context(base_url)
    if context is not None:
        options["verify"] = context
    if proxy is not None:
        options["proxy"] = proxy.url
    return options


def allowed_headers(headers: Any, home: str, key: str | None) -> dict[str, str]:
    """The headers of a request.

    Args:
        headers: that openai would send. OPENAI_CUSTOM_HEADERS may have replaced any of them, so none is taken over.
        home: the server's origin. OpenAI itself gets the settings of an account.
        key: of the server.
    """
    # A small compressed body can grow to gigabytes, so none is asked for.
    allowed = {"accept": "application/json", "content-type": "application/json", "accept-encoding": "identity"}
    if key:
        allowed["authorization"] = f"Bearer {key}"
    if home == origin(OPENAI):
        allowed |= {name: headers[name] for name in OWN_SETTINGS if name in headers}
    return allowed


def check_environment() -> None:
    """Raises NetworkError for a variable of openai whose text cannot stand in a header, sent or not."""
    for name in HEADER_VARIABLES:
        if not os.environ.get(name, "").isascii():
            raise NetworkError(f"{name} holds letters that no HTTP header takes: correct it or unset it")


def is_at(url: str, home: str) -> bool:
    """Whether an address has an origin; one that must not be asked has none."""
    # The path of a redirect may hold a query, which `origin` refuses in a base URL.
    parts = urlsplit(url)
    try:
        return origin(f"{parts.scheme}://{parts.netloc}") == home
    except CredentialError:
        return False


async def bounded_error(response: Any, final_statuses: Collection[int]) -> Any:
    """An error as it came, with no more than the first part of its body.

    Args:
        response: of httpx, not read yet.
        final_statuses: see `open_client`.
    """
    body = bytearray()
    try:
        async for part in decoded_parts(response, MAX_ERROR):
            body += part
            if len(body) >= MAX_ERROR:
                break
    except (zlib.error, ResponseError):
        body.clear()  # the status says enough
    await response.aclose()
    headers = {name: value for name, value in response.headers.items() if name in ("retry-after", "retry-after-ms")}
    headers["content-type"] = response.headers.get("content-type", "text/plain")
    if "location" in response.headers:
        headers["location"] = response.headers["location"]
    # openai reads this header before it decides on another try.
    if response.status_code in final_statuses:
        headers["x-should-retry"] = "false"
    # httpx or its successor, whichever openai uses.
    return type(response)(
        response.status_code, headers=headers, content=bytes(body[:MAX_ERROR]), request=response.request
    )


async def decoded_parts(response: Any, limit: int) -> AsyncIterator[bytes]:
    """The parts of a body, decompressed, none much larger than the limit.

    Raises:
        ResponseError: it is compressed in a way that was not asked for and is not known here.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().casefold()
    if encoding in ("", "identity"):
        async for part in response.aiter_raw():
            yield part
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ResponseError(f"the response is compressed with {quoted(encoding)}, which was not asked for")
    # 32 more than the window's size: the header says whether it is gzip or zlib.
    decoder = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    async for part in response.aiter_raw():
        yield decoder.decompress(part, limit + 1)


async def read_body(response: Any) -> bytes:
    """The body of a response, up to a size that no answer needs.

    Raises:
        ResponseError: it is larger, or broken off.
    """
    body = bytearray()
    try:
        async for part in decoded_parts(response, MAX_RESPONSE):
            body += part
            if len(body) > MAX_RESPONSE:
                raise ResponseError(f"the response is larger than {MAX_RESPONSE:,} bytes")
    except ResponseError:
        raise
    except Exception as error:  # of zlib and of the HTTP library, which openai does not wrap here
        raise ResponseError(f"the response broke off ({type(error).__name__})") from None
    return bytes(body)


def read_text(body: bytes, key: str | None) -> str:
    """What the model wrote, from the body of a chat completion.

    Raises:
        ResponseError: it is none; with the reason that the server gives instead.
        AnswerError: the model wrote nothing.
    """
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        message = choice["message"]
        text = _text_of_content(message["content"]) or _arguments(message.get("tool_calls"))
    except (ValueError, LookupError, TypeError, RecursionError):
        reason = server_reason(body, key)
        raise ResponseError("the response is no chat completion" + (f" but says: {reason}" if reason else "")) from None
    if text:
        return scrub(text, key)
    # Models that think may spend all their length on it.
    if choice.get("finish_reason") == "length":
        raise AnswerError("the model wrote nothing before the server's limit of length")
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        raise AnswerError(f"the model refuses: {quoted(scrub(refusal, key))}")
    raise AnswerError("the model wrote nothing")


def _text_of_content(content: object) -> str:
    """The text of a message, which may come in chunks, some of them thoughts."""
    if isinstance(content, dict):
        # Some servers hand over the object itself where a schema was asked for.
        return _text_of_content([content]) if "text" in content else json.dumps(content)
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    texts = []
    for chunk in content:
        if isinstance(chunk, str):
            texts.append(chunk)
        elif isinstance(chunk, dict) and chunk.get("type", "text") in ("text", "output_text"):
            text = chunk.get("text")
            texts.append(text if isinstance(text, str) else "")
    return "".join(texts)


def _arguments(calls: object) -> str:
    """What a model writes that calls a function though it was given none: the arguments are the answer."""
    match calls:
        case [{"function": {"arguments": str(text)}}, *_]:
            return text
    return ""


def server_reason(body: bytes, key: str | None) -> str:
    """What a server says about its failure: in an error object, in a page or as plain text; "" when it says nothing.

    Args:
        body: of the response.
        key: is taken out before anything is cut.
    """
    text = body.decode("utf-8", errors="replace")
    try:
        reason = scrub(_error_message(json.loads(text)), key)
    except (ValueError, RecursionError):
        # The search for tags takes time that grows with the square of a text without their ends.
        start = scrub(text, key)[:MAX_PAGE]
        reason = TAG.sub(" ", start)
    return escaped(" ".join(reason.split()), MAX_REASON)


def _error_message(content: object) -> str:
    """The text of an error object in the forms of OpenAI, OpenRouter, FastAPI, Ollama and others."""
    for name in ("error", "message", "detail", "msg", "errors", "choices"):
        inner = content.get(name) if isinstance(content, dict) else None
        if isinstance(inner, list) and inner:
            inner = inner[0]
        if isinstance(inner, str) and inner:
            return inner
        if isinstance(inner, dict):
            message = _error_message(inner)
            if message:
                return message
    return ""
