"""What is done with the texts of every node: those that come in are checked, those that it returns are shown on it."""

import functools
import inspect
import math
import re
from typing import Any

from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...eraseanything_core.quoting import check_text
from .inputs import check_range

PAGE_TEXT = "page_text"  # the name of a text that is ready for the page, in what a node returns for it
# Characters that Markdown or HTML gives a meaning: some anywhere, some at the start of a line, where a list begins.
SYNTAX = re.compile(r"[&<`*_\[\]#|~\\]|^[-+=>]|^\d(?=\d*[.)])")


def check_texts(values: dict[str, Any]) -> None:
    """Raises ValueError when a text among the values of inputs cannot be written; other values pass.

    Args:
        values: by name of the input. A node that takes lists gets a list of texts for each.
    """
    for name, value in values.items():
        texts = value if isinstance(value, (list, tuple)) else [value]
        for text in texts:
            if isinstance(text, str):
                check_text(text, f"`{name}`")


def check_values(values: dict[str, Any]) -> None:
    """Raises ValueError for a text that cannot be written and for a number that is none; see `check_texts`.

    NaN passes ComfyUI's check of a widget's range, and a link may bring any number.
    """
    check_texts(values)
    for name, value in values.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name} is {number}: set a number")


def page_text(text: str) -> str:
    """A text in the form in which both of ComfyUI's renderers show it as it is, line by line.

    One of them takes what a node says for HTML, the other one, Nodes 2.0, for Markdown with HTML in it. Words of a
    file or a server could then load a picture from anywhere. Both show an HTML entity as its character.
    """
    lines = []
    for line in text.splitlines():
        words = line.lstrip(" ")
        indent = "&nbsp;" * (len(line) - len(words))
        lines.append(indent + SYNTAX.sub(_as_entity, words))
    return "  \n".join(lines)  # two spaces at its end make a line of Markdown a line


def _as_entity(match: re.Match[str]) -> str:
    return f"&#{ord(match[0])};"


def show_text(text: str, node: str | None) -> None:
    """Shows a text on a node until the next one; nothing happens without a server or a node.

    ComfyUI keeps the texts that nodes return for its history, but its page shows only those that are sent this way.

    Args:
        text: shown as it is, line breaks included.
        node: id of the node.
    """
    server: Any = getattr(PromptServer, "instance", None)
    if server and node:
        server.send_progress_text(page_text(text), node)


def with_shown_text(output: io.NodeOutput) -> io.NodeOutput:
    """Shows the text among what a node returns for the page, on the node that runs now.

    Args:
        output: its `ui` has the text in lines, as `ui.PreviewText` writes it; without one nothing happens.

    Returns:
        The output, with the text in it once more as the page shows it. The page keeps it for web/js/texts.js, which
        shows it when the workflow is opened again or the node comes from the cache.
    """
    # The context and not the hidden input unique_id, which a node has only where its schema asks for it.
    running = get_executing_context()
    shown = output.ui if isinstance(output.ui, dict) or output.ui is None else output.ui.as_dict()
    if running and shown and shown.get("text"):
        text = "\n".join(shown["text"])
        show_text(text, running.node_id)
        output.ui = {**shown, PAGE_TEXT: [page_text(text)]}
    return output


def with_checked_texts(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node class, which from now on refuses text that no encoding can write, and shows the text that it returns.

    JSON carries half of a surrogate pair, so such text arrives over HTTP. Where it is repeated in an error, ComfyUI's
    log cannot write it and the thread that runs the queue ends. A typed text is refused before anything runs. One that
    comes by a link is known only when the node runs, so it is looked at there as well.
    """
    _check_when_it_runs(node)
    texts = []
    for each in node.define_schema().inputs:
        if isinstance(each, io.String.Input):
            texts.append(each.id)
    own_check: Any = node.validate_inputs if "validate_inputs" in vars(node) else None
    own_parameters = inspect.signature(own_check).parameters.values() if own_check else []
    # A check that takes any input looks at texts itself, and raises what is wrong; see Erase Settings.
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own_parameters)
    if not takes_any and (texts or own_check):
        _check_when_it_is_queued(node, texts, own_check)
    return node


def _check_when_it_runs(node: type[io.ComfyNode]) -> None:
    """Checks texts that come by a link, and names of files, which Linux stores as any bytes; shows what comes out."""
    # The plain function and not the bound method: ComfyUI runs a subclass that it makes for each call.
    execute: Any = vars(node)["execute"].__func__

    @functools.wraps(execute)
    def checked_execute(cls: type[io.ComfyNode], *args: Any, **values: Any) -> io.NodeOutput:
        check_values(values)
        return with_shown_text(execute(cls, *args, **values))

    @functools.wraps(execute)
    async def checked_async_execute(cls: type[io.ComfyNode], *args: Any, **values: Any) -> io.NodeOutput:
        check_values(values)
        return with_shown_text(await execute(cls, *args, **values))

    # ComfyUI awaits a node whose function is a coroutine, and it asks the function for that.
    is_async = inspect.iscoroutinefunction(execute)
    node.execute = classmethod(checked_async_execute if is_async else checked_execute)


def _check_when_it_is_queued(node: type[io.ComfyNode], texts: list[str], own_check: Any) -> None:
    """Checks typed texts before the check of the node's own, and raises what either of them finds wrong.

    ComfyUI repeats a message that is returned for every input that the check names, and drops it where it names none.
    One that is raised it says once.

    Args:
        node: whose check is replaced.
        texts: names of its inputs that hold text.
        own_check: its `validate_inputs`, or None.
    """
    own_parameters = list(inspect.signature(own_check).parameters) if own_check else []

    def validate_inputs(cls: type[io.ComfyNode], **values: Any) -> bool:
        check_texts(values)
        if own_check is not None:
            answer = own_check(**{name: value for name, value in values.items() if name in own_parameters})
            if answer is not True:
                raise ValueError(answer)
        # ComfyUI leaves the range and the list of an input to the check that names it.
        for field in node.define_schema().inputs:
            if field.id in own_parameters:
                check_range(field, values.get(field.id))
        return True

    # ComfyUI hands over the inputs that the signature names. One that takes any would lose core's check of numbers.
    parameters = []
    for name in dict.fromkeys(["cls", *own_parameters, *texts]):
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD))
    validate_inputs.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    node.validate_inputs = classmethod(validate_inputs)
