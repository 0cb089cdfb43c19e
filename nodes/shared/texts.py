"""The check that every text input of every node gets, when a graph is queued and when a linked text arrives."""

import functools
import inspect
from typing import Any

from comfy_api.latest import io

from ...eraseanything_core.quoting import check_text
from .inputs import accepted


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


def with_checked_texts(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node class, which from now on refuses text that no encoding can write.

    JSON carries half of a surrogate pair, so such text arrives over HTTP. Where it is repeated in an error, ComfyUI's
    log cannot write it and the thread that runs the queue ends. A typed text is refused before anything runs. One that
    comes by a link is known only when the node runs, so it is looked at there as well.
    """
    _check_when_it_runs(node)
    texts = []
    for each in node.define_schema().inputs:
        if isinstance(each, io.String.Input):
            texts.append(each.id)
    if texts:
        _check_when_it_is_queued(node, texts)
    return node


def _check_when_it_runs(node: type[io.ComfyNode]) -> None:
    """Checks texts that come by a link, and names of files, which Linux stores as any bytes."""
    # The plain function and not the bound method: ComfyUI runs a subclass that it makes for each call.
    execute: Any = vars(node)["execute"].__func__

    @functools.wraps(execute)
    def checked_execute(cls: type[io.ComfyNode], *args: Any, **values: Any) -> io.NodeOutput:
        check_texts(values)
        return execute(cls, *args, **values)

    @functools.wraps(execute)
    async def checked_async_execute(cls: type[io.ComfyNode], *args: Any, **values: Any) -> io.NodeOutput:
        check_texts(values)
        return await execute(cls, *args, **values)

    # ComfyUI awaits a node whose function is a coroutine, and it asks the function for that.
    is_async = inspect.iscoroutinefunction(execute)
    node.execute = classmethod(checked_async_execute if is_async else checked_execute)


def _check_when_it_is_queued(node: type[io.ComfyNode], texts: list[str]) -> None:
    """Checks typed texts before the check of the node's own, if it has one."""
    own_check: Any = node.validate_inputs if "validate_inputs" in vars(node) else None
    own_parameters = list(inspect.signature(own_check).parameters) if own_check else []

    def validate_inputs(cls: type[io.ComfyNode], **values: Any) -> bool | str:
        answer = accepted(check_texts, values)
        if answer is not True or own_check is None:
            return answer
        own_values = {name: value for name, value in values.items() if name in own_parameters}
        return own_check(**own_values)

    # ComfyUI hands over the inputs that the signature names. One that takes any would lose core's check of numbers.
    parameters = []
    for name in dict.fromkeys(["cls", *own_parameters, *texts]):
        parameters.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD))
    validate_inputs.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    node.validate_inputs = classmethod(validate_inputs)
