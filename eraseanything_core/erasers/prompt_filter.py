"""The plainest eraser: the words are taken out of the prompt before the model sees it."""

from ..concepts import matching


def filtered(prompt: str, words: tuple[str, ...]) -> str:
    """The prompt without every occurrence of the words, by the rule of `matching.find_spans`."""
    for word in words:
        prompt = matching.replace(prompt, word, "")
    # A word that was cut out leaves two blanks, which a tokenizer would read as a piece of its own.
    return " ".join(prompt.split())
