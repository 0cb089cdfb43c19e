"""The plainest eraser: the words are taken out of the prompt before the model sees it."""

from .. import tokens


def filtered(prompt: str, words: tuple[str, ...]) -> str:
    """The prompt without every occurrence of the words, by the rule of `tokens.find_spans`."""
    for word in words:
        prompt = tokens.replace(prompt, word, "")
    return " ".join(prompt.split())
