"""The texts from which a gate is learnt: some name the concept, in all ways of writing it, and some do not.

Their number is bounded, for each is a run of the text encoder. A concept without synonyms takes about 70 runs on
T5-XXL and 100 on TinyFlux, whose texts are shorter. Each synonym adds 17.
"""

from collections.abc import Callable, Iterator, Sequence

from ..concepts import articles, matching, prompts, vocabulary
from ..concepts.number_forms import plural
from ..protocols import TextEncoder
from .headers import ErasedConcept

# How many texts name the concept itself, and how many each synonym:
TEMPLATES = (12, 4)  # alone
LONG_TEXTS = (4, 2)  # among other sentences
SHORT_FORMS = (18, 9)  # in one written form, with other things in every other text
LISTS = (1, 2)  # in all written forms, with other things
# And how many name nothing of it:
SHORT_TEXTS = 12
KEPT_FORMS = 18
KEPT_LISTS = 2
# These are packed to few long texts.
KEPT_SENTENCES = 64
KEPT_WORDS = 300
COMMON_WORDS = tuple(word for words, _ in vocabulary.WORDS.values() for word in words)


class GateTexts:
    """The texts from which the gate of one concept is learnt.

    Args:
        concept: its names stand in some of them, its irrelevant words and kept prompts in others.
        encoder: the text encoder, by which the length of texts is measured.
    """

    def __init__(self, concept: ErasedConcept, encoder: TextEncoder) -> None:
        self.names = concept.names
        self.templates = list(dict.fromkeys((*prompts.DEFAULT_TEMPLATES, *concept.templates)))
        irrelevant = self._kept(concept.irrelevant[:KEPT_WORDS])
        self.words = irrelevant or self._kept(COMMON_WORDS)
        # What stands beside a name: common words are verbs and adjectives too.
        self.things = irrelevant or self._kept(vocabulary.PHYSICAL_NOUNS)
        words = [prompts.fill(prompts.DEFAULT_TEMPLATES[0], word) for word in self.words]
        retain = self._kept(concept.retain[:KEPT_SENTENCES])
        self.sentences = [*words[:SHORT_TEXTS], *retain, *words[SHORT_TEXTS:]]
        self.long_texts = list(packed(self.sentences, encoder))

    def kept(self) -> list[str]:
        """Those that name nothing of the concept; some have several things in them, in other written forms."""
        texts = ["", *self.long_texts, *self.sentences[:SHORT_TEXTS]]
        for i in range(KEPT_FORMS):
            texts.append(self.in_one_form(self.words[i % len(self.words)], i))
        for i in range(KEPT_LISTS):
            texts.append(self.in_all_forms(self.words[i % len(self.words)], i))
        return self._kept(texts)

    def naming(self) -> Iterator[tuple[str, str]]:
        """Those that name the concept, each with the name that is in it."""
        for number, name in enumerate(self.names):
            synonym = min(number, 1)
            for template in self.templates[: TEMPLATES[synonym]]:
                yield prompts.fill(template, name), name
            for i in range(LONG_TEXTS[synonym]):
                sentence = prompts.fill(self.templates[i % len(self.templates)], name)
                other = self.long_texts[(number + i) % len(self.long_texts)]
                yield f"{sentence}, {other}" if i % 2 else f"{other}, {sentence}", name
            for i in range(SHORT_FORMS[synonym]):
                yield self.in_one_form(name, i), name
            for i in range(LISTS[synonym]):
                yield self.in_all_forms(name, number + i), name

    def in_one_form(self, name: str, number: int) -> str:
        """A short text with a name in one of its written forms; all forms take their turn."""
        forms = written_forms(name)
        form, cased = forms[number % len(forms)]
        turn = number // len(forms)
        context = self.context(number + turn) if turn % 2 else self.templates[number % len(self.templates)]
        return prompts.fill(context, cased(form))

    def in_all_forms(self, name: str, number: int) -> str:
        """One text with a name in all its written forms; the number chooses what stands beside them."""
        texts = []
        for i, (form, cased) in enumerate(written_forms(name)):
            context = self.context(2 * number + i)
            # In every other text the things are written like the name: capitals alone are no sign of it.
            texts.append(cased(prompts.fill(context, form)) if number % 2 else prompts.fill(context, cased(form)))
        return ", ".join([*texts[number:], *texts[:number]])

    def context(self, number: int) -> str:
        """A template of a name with other things, which are before it or after it, or a list of tags."""
        first = self.things[2 * number % len(self.things)]
        second = self.things[(2 * number + 1) % len(self.things)]
        one = articles.with_article(first)
        sentence = self.sentences[number % len(self.sentences)]
        # Without those whose own words name the concept: `beside` may be erased.
        contexts = self._kept(
            (
                f"a {{}} and {one}",
                f"{first}, {{}}, {second}",
                f"{sentence} and a {{}}",
                f"{one} beside a {{}}",
                f"{{}}, {first}, {second}",
                f"a {{}}, {sentence}",
                f"{first}, {second}, {{}}",
            )
        )
        return contexts[number % len(contexts)]

    def _kept(self, texts: Sequence[str]) -> list[str]:
        """Those without the concept's own words: `star fish` may be irrelevant to `star`, but is not far from it."""
        return [text for text in texts if matching.first_occurring(text, self.names) is None]


def titled(text: str) -> str:
    """The text with a capital in front of every word."""
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


CASINGS: tuple[Callable[[str], str], ...] = (str, str.lower, titled, str.upper)


def written_forms(name: str) -> list[tuple[str, Callable[[str], str]]]:
    """A name in its numbers and the possessive, each with each of the casings."""
    forms: dict[str, tuple[str, Callable[[str], str]]] = {}
    for form in (name, plural(name), f"{name}'s"):
        for cased in CASINGS:
            # Some words have no plural, and some letters no capital that is found again.
            if matching.occurs(cased(form), name):
                forms.setdefault(cased(form), (form, cased))
    return list(forms.values())


def packed(sentences: Sequence[str], encoder: TextEncoder) -> Iterator[str]:
    """The sentences joined to texts of the length that the text encoder makes of shorter ones anyway."""
    room = len(encoder.pieces(""))
    text = ""
    for sentence in sentences:
        longer = f"{text}, {sentence}" if text else sentence
        if text and len(encoder.pieces(longer)) > room:
            yield text
            longer = sentence
        text = longer
    yield text
