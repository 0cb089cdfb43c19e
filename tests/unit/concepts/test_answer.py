"""What reasoning models and others write around, before and instead of a plain answer."""

import asyncio
import json

import pytest

from eraseanything_core.concepts import llm
from eraseanything_core.concepts.answer import AnswerError, Question, find_answer, json_objects
from scripts.chat_server import ChatServer, answers, completion, says

QUESTION = Question("nude", ("nude", "naked"), count=3)
DRAFT = {
    "no_relation": [["draft", 0.1], ["sketch", 0.2], ["outline", 0.1]],
    "far": [["hot", 0.3], ["color", 0.4], ["wet", 0.3]],
    "mid": [["image", 0.5], ["figure", 0.6], ["portrait", 0.5]],
}
GOOD = DRAFT | {"no_relation": [["cloud", 0.1], ["tree", 0.2], ["carpet", 0.1]]}
D, G = json.dumps(DRAFT), json.dumps(GOOD)


def read(text, question=QUESTION):
    return find_answer(json_objects(text), question)[1]


def words(answer):
    return [word.word for tier in answer.irrelevant.values() for word in tier]


THINKING = {
    "closed": f"<think>Perhaps {D}?</think>\n{G}",
    "without its beginning": f"Perhaps {D}? No.\n</think>\n\n```json\n{G}\n```",
    "twice": f"<think>{D}</think> Hm. <think>{D}</think>{G}",
    "after the answer": f"{G}\n<think>Was {D} better?</think>",
    "other casing": f"<Thinking>{D}</Thinking>{G}",
    "Magistral": f"[THINK]{D}[/THINK]{G}",
    "Kimi": f"◁think▷{D}◁/think▷{G}",
    "Command A": f"<|START_THINKING|>{D}<|END_THINKING|>{G}",
    "Seed": f"<seed:think>{D}</seed:think>{G}",
    "gpt-oss": f"<|channel|>analysis<|message|>{D}<|end|><|start|>assistant<|channel|>final<|message|>{G}",
    "unmarked draft": f"First idea: {D}. Corrected: {G}",
    "an example of the form first": '{"no_relation": [{"word": "...", "score": 0.1}], "far": [], "mid": []} ' + G,
    "something after it": f'{G} {{"confidence": 0.9}}',
    "a wrapper": json.dumps({"answer": GOOD}),
    "a wrapper that is not closed": f'{{"answer": {G}',
    "commas at the end of lists": G.replace("]", ",]").replace("}", " ,\n}"),
    "formulas": "<think>" + r"\frac{a}{b} " * 200 + f"</think>{G}",
    "longer than an answer": f"<think>{'hm ' * 60_000}{D}</think>{G}",
}


@pytest.mark.parametrize("name", THINKING)
def test_the_answer_is_the_object_after_the_thinking_that_passes_the_check(name):
    assert words(read(THINKING[name]))[:3] == ["cloud", "tree", "carpet"]


@pytest.mark.parametrize("text", [f"<think>{D}", f"<think>{D}</think>I cannot.", f"{D}</think>", f"[THINK]{D} so"])
def test_a_draft_is_no_answer(text):
    with pytest.raises(AnswerError, match="it holds no complete JSON object"):
        read(text)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": G}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": D}]}, {"type": "text", "text": G}],
        [{"type": "reasoning", "text": D}, {"type": "output_text", "text": G[:50]}, {"type": "text", "text": G[50:]}],
        [G[:50], G[50:]],
        {"type": "text", "text": G},
        GOOD,
    ],
)
def test_content_may_come_in_chunks_or_parsed(content, tmp_path):
    with ChatServer(answers(completion(content))) as server:
        answer = asyncio.run(llm.ask(QUESTION, llm.Server(server.url, "m"), None, tmp_path))
    assert words(answer)[:3] == ["cloud", "tree", "carpet"] and len(server.requests) == 1


def test_the_arguments_of_a_function_that_was_not_offered_are_the_answer(tmp_path):
    message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "words", "arguments": G}}]}
    body = json.dumps({"choices": [{"message": message}]}).encode()
    with ChatServer(answers(body)) as server:
        answer = asyncio.run(llm.ask(QUESTION, llm.Server(server.url, "m"), None, tmp_path))
    assert words(answer)[:3] == ["cloud", "tree", "carpet"]


@pytest.mark.parametrize(
    "bad",
    [["nude", 0.5], ["Cloud", 0.5], ["a b c d", 0.5], ["x{}", 0.5], ["word", 5], ["word", "high"], "word", None, 3,
     ["word", float("nan")], ["word", True], ["word", 10**400], ["word", -1], [["word"], 0.5], ["x" * 41, 0.5]],
    ids=str,
)  # fmt: skip
def test_one_bad_word_costs_that_word(bad):
    six = [["image", 0.5], ["figure", 0.6], bad, ["portrait", 0.5], ["statue", 0.5], ["frame", 0.4]]
    expected = ["image", "figure", "portrait", "statue", "frame"]
    answer = read(json.dumps(GOOD | {"mid": six}), Question("nude", ("nude", "naked"), count=6, prompts=False))
    assert [word.word for word in answer.irrelevant["mid"]] == expected
    # A spare word takes its place.
    answer = read(json.dumps(GOOD | {"mid": six}), Question("nude", ("nude", "naked"), count=5))
    assert [word.word for word in answer.irrelevant["mid"]] == expected


def test_more_bad_words_than_good_ones_cost_the_answer():
    bad = [["nude", 0.5], ["naked", 0.5]]
    with pytest.raises(AnswerError, match="'nude' holds or is part of 'nude'"):
        read(json.dumps(GOOD | {"mid": [*bad, ["image", 0.5]]}))
    with pytest.raises(AnswerError, match="mid must be a list of 3 words"):
        read(json.dumps(GOOD | {"mid": []}))


def test_one_bad_prompt_or_neighbour_costs_only_itself():
    more = {
        "prompts": ["a nude girl", "a girl", "a nude man {", "the nude in art", " a nude woman "],
        "neighbours": ["swimsuit", "naked man", "bathrobe", 3],
        "neutral": "a dressed person",
    }
    answer = read(json.dumps(GOOD | more), Question("nude", ("nude", "naked"), 3, prompts=True))
    assert answer.prompts == ("a nude girl", "the nude in art", "a nude woman")
    assert answer.neighbours == ("swimsuit", "bathrobe")


@pytest.mark.parametrize(
    "scores, expected",
    [
        (["0.5", "0.6", " 0,25 "], [0.5, 0.6, 0.25]),
        (["50%", "60 %", 0.25], [0.5, 0.6, 0.25]),
        ([".5", "+0.6", ",25"], [0.5, 0.6, 0.25]),
        (["1", "0", "1.0"], [1, 0, 1]),
        ([1, 0, 1.0], [1, 0, 1]),
    ],
)
def test_scores_may_be_text_or_percent(scores, expected):
    mid = [[word, score] for (word, _), score in zip(GOOD["mid"], scores)]
    assert [word.score for word in read(json.dumps(GOOD | {"mid": mid})).irrelevant["mid"]] == expected


def test_an_answer_wholly_in_percent_is_read_as_such():
    percent = {tier: {word: round(100 * score) for word, score in entries} for tier, entries in GOOD.items()}
    assert read(json.dumps(percent)) == read(G)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 40_000,
        "{" * 100_000,
        '{"no_relation": [' + "9" * 5_000 + "]}",
        '{"a":{"b":[1,' * 8_000,
        "<think>" * 90_000,
    ],
)
def test_a_hostile_text_is_read_quickly(text):
    with pytest.raises(AnswerError):
        read(text)


def test_a_text_without_an_answer_names_the_reason_of_the_last_one(tmp_path):
    with ChatServer(says(f"{D[:-1]}, "), says(GOOD)) as server:
        asyncio.run(llm.ask(QUESTION, llm.Server(server.url, "m"), None, tmp_path))
    assert "it holds no complete JSON object" in server.requests[1]["body"]["messages"][3]["content"]
