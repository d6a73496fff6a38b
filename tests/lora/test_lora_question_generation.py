from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragft_plugin.demo.question_patterns import world_patterns
from ragft_plugin.demo.world import RELATIONS, draw_site, passage
from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.evaluation.answers import contains
from ragft_plugin.lora.data import parse_row
from ragft_plugin.lora.question_generation import (
    LLMWriter,
    Pattern,
    Patterns,
    generate_questions,
    parse_pairs,
)
from ragft_plugin.types import Generation, Passage, Prompt

ROME = Passage("p1", "Brelkon stands in Rome. It was founded in 1950.")


@settings(deadline=None, derandomize=True, max_examples=40)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4))
def test_every_statement_of_the_world_becomes_questions_with_its_value(seed: int, count: int) -> None:
    rng = random.Random(seed)
    site = draw_site(rng, held_out=True)
    told = rng.sample(list(RELATIONS), 4)
    made = generate_questions([Passage("p", passage(rng, site, told))], world_patterns(count))
    wanted = {(q.format(x=site.name), site.facts[name]) for name in told for q in RELATIONS[name].questions()}
    assert {(q.question, q.answers[0]) for q in made.questions} <= wanted
    assert len(made.questions) == 4 * count
    assert all(q.passages[0].id == "p" for q in made.questions)


class Fixed:
    def __init__(self, *pairs: tuple[str, str]) -> None:
        self.pairs = pairs

    def write(self, passages: Sequence[Passage]) -> list[tuple[tuple[str, str], ...]]:
        return [self.pairs for _ in passages]


def test_what_can_not_be_trained_on_is_left_out_and_counted() -> None:
    made = generate_questions(
        [ROME],
        Fixed(
            ("Where is Brelkon?", "rome"),  # in another case, as the check allows
            ("Where is Brelkon?", "Rome."),
            ("where is brelkon", "1950"),
            ("Where is Brelkon's twin?", "Paris"),
            ("Is it in Rome?", "Rome"),
            ("What is said of Brelkon?", "Brelkon stands in Rome. It was founded"),
            ("", "Rome"),
        ),
        max_answer_words=5,
    )
    assert [(q.question, q.answers[0]) for q in made.questions] == [("Where is Brelkon?", "rome")]
    assert made.rejected == {
        "not in the passage": 1,
        "given away": 1,
        "asked before": 1,
        "answered otherwise before": 1,
        "empty or too long": 2,
    }
    assert "1 questions" in str(made)


def test_questions_become_rows_of_all_kinds() -> None:
    made = generate_questions(
        [ROME, Passage("p2", "Nothing to ask.")], Patterns([Pattern("{x} stands in {v}.", ("Where is {x}?",))])
    )
    assert made.silent == ("p2",)
    closed, opened = made.rows()[0], made.rows(with_passage=True)[0]
    assert (closed.prompt, closed.answer) == (Prompt("Where is Brelkon?"), "Rome")
    assert opened.prompt.passages == (ROME,)
    record = made.records()[0]
    assert record["passage_id"] == "p1"
    assert parse_row(record).answer == "Rome"


def test_at_most_so_many_questions_per_passage() -> None:
    several = Patterns([Pattern("{x} stands in {v}.", ("Where is {x}?", "{x} is where?", "Place of {x}?"))], 3)
    assert len(generate_questions([ROME], several).questions) == 3
    assert len(generate_questions([ROME], several, per_passage=2).questions) == 2


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ('```json\n{"question": "Where?", "answer": "Rome"}\n{"question": "When?", "answer": 1950}\n```',
         [("Where?", "Rome"), ("When?", "1950")]),
        ('[{"question": "Where?", "answer": "Rome"}, {"question": 3}, {broken}]', [("Where?", "Rome")]),
        ("Q1: Where is it?\nA1: Rome\n\nQ2: When?\nA2: 1950", [("Where is it?", "Rome"), ("When?", "1950")]),
        ("Question: Where?\nAnswer: Rome", [("Where?", "Rome")]),
        ("I would rather not.", []),
    ],
)  # fmt: skip
def test_what_a_model_wrote_is_understood(text: str, pairs: list[tuple[str, str]]) -> None:
    assert parse_pairs(text) == pairs


REPLY = '{"question": "Where is Brelkon?", "answer": "Rome"}\n{"question": "Who runs it?", "answer": "Ada"}'


class LangChainLike:
    def invoke(self, prompt: str) -> Any:
        return SimpleNamespace(content=REPLY)


class LlamaIndexLike:
    def complete(self, prompt: str) -> Any:
        return SimpleNamespace(text=REPLY)


class OurGenerator:
    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        assert "Brelkon stands in Rome" in prompts[0].question
        return [Generation(REPLY) for _ in prompts]

    def stream(self, prompt: Prompt, **options: Any) -> Any:
        yield REPLY


@pytest.mark.parametrize("model", [LangChainLike(), LlamaIndexLike(), OurGenerator(), lambda prompt: REPLY])
def test_any_language_model_can_write(model: Any) -> None:
    made = generate_questions([ROME], LLMWriter(model))
    assert [q.answers[0] for q in made.questions] == ["Rome"]
    assert made.rejected["not in the passage"] == 1  # the invented answer


def test_a_real_langchain_and_a_real_llama_index_model_can_write() -> None:
    fake = pytest.importorskip("langchain_core.language_models.fake_chat_models")
    chat = fake.FakeListChatModel(responses=[REPLY])
    assert len(generate_questions([ROME], LLMWriter(chat)).questions) == 1
    mock = pytest.importorskip("llama_index.core.llms.mock")
    echo = mock.MockLLM()  # says what it was told, so that only the example of the format can be found
    made = generate_questions(
        [ROME], LLMWriter(echo, instruction="n={n} " + REPLY.replace("{", "{{").replace("}", "}}") + "{passage}")
    )
    assert len(made.questions) == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="object cannot be asked"):
        generate_questions([ROME], LLMWriter(object()))
    with pytest.raises(ConfigError, match=r"must have \{v\} once"):
        Pattern("{x} stands.", ("Where?",))
    with pytest.raises(ConfigError, match=r"must have \{v\} once"):
        Pattern("{x} stands in {v}.", ("Is {x} in {v}?",))
    with pytest.raises(DataError, match="expected pairs"):
        generate_questions([ROME], Fixed(("a", 3)))  # type: ignore[arg-type]
    assert contains(ROME.text, "Rome")
