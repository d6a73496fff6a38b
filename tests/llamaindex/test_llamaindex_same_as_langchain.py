"""The same arms and the same router give the same decision and the same text in both frameworks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llamaindex_stubs import PlainGenerator

from ragft_plugin.arms import Arm
from ragft_plugin.demo.questions import documents, questions
from ragft_plugin.langchain import RoutedChain
from ragft_plugin.langchain import RoutedRetriever as ChainRetriever
from ragft_plugin.llama_index import RoutedQueryEngine, RoutedRetriever
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.retrieval import KnowledgeBase
from ragft_plugin.routing import AdapterRecord, Router
from ragft_plugin.types import Decision

ASKED = [question.query for question in questions("test")][:200]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder: Path = tmp_path_factory.mktemp("same")
    with KnowledgeBase.create(folder / "kb") as base:
        base.add(documents())
        arms = [
            Arm("base", PlainGenerator("base")),
            Arm("rag", PlainGenerator("base"), base, cost=1.0),
            Arm("adapter:facts", PlainGenerator("facts")),
            Arm("rag+adapter:facts", PlainGenerator("facts"), base, cost=1.0),
        ]
        # Every other question counts as taught to the adapter, so that not all of them go one way.
        taught = {"adapter:facts": AdapterRecord(questions=ASKED[::2])}
        yield Pipeline(arms, Router.cold([arm.name for arm in arms], adapters=taught))


def told(decision: Any) -> Any:
    """A decision without its id, which is drawn anew for each."""
    names = [name for name in Decision.__dataclass_fields__ if name != "id"]
    values = {name: decision[name] if isinstance(decision, dict) else getattr(decision, name) for name in names}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def test_two_hundred_questions_are_decided_and_answered_alike(pipeline: Pipeline) -> None:
    assert len(ASKED) == 200
    chain, engine = RoutedChain(pipeline=pipeline), RoutedQueryEngine(pipeline)
    arms = set()
    for question in ASKED:
        one, other = chain.invoke(question), engine.query(question)
        decision = (other.metadata or {})["decision"]
        assert one["answer"] == str(other)
        assert told(one["decision"]) == told(decision)
        assert [d.id for d in one["context"]] == [n.node_id for n in other.source_nodes]
        arms.add(decision.arm)
    assert len(arms) > 1, "the questions do not tell the arms apart"


def test_retrievers_of_both_frameworks_find_alike(pipeline: Pipeline) -> None:
    chain, engine = ChainRetriever(pipeline=pipeline), RoutedRetriever(pipeline)
    for question in ASKED[:50]:
        assert [d.id for d in chain.invoke(question)] == [n.node_id for n in engine.retrieve(question)]
