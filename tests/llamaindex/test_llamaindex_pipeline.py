"""What the frameworks ask of the pipeline: decide from known passages, read once, answer from exactly that."""

from __future__ import annotations

from llamaindex_stubs import PlainGenerator, PlainRetriever, WordRouter, plain_pipeline

from ragft_plugin.arms import Arm
from ragft_plugin.errors import GenerationError
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.types import Evidence, Passage

PORT = "Which port does the relay of Norden use?"


def two_retrievers(**settings: object) -> tuple[Pipeline, PlainRetriever, PlainRetriever]:
    first, second = PlainRetriever(), PlainRetriever()
    arms = [Arm("one", PlainGenerator("one"), first), Arm("two", PlainGenerator("two"), second)]
    return Pipeline(arms, WordRouter({"port": "two"}, "one"), k=2, **settings), first, second  # type: ignore[arg-type]


def test_known_passages_are_not_retrieved_again() -> None:
    pipeline = plain_pipeline(gather=True)
    (routed,) = pipeline.decide([Evidence(PORT, passages=(Passage("x", "known"),))])
    assert pipeline.complete([routed])[0].text == f"model read x for {PORT}"
    assert pipeline.retriever.calls == 0  # type: ignore[union-attr]


def test_the_scope_of_a_request_holds_for_known_evidence() -> None:
    pipeline = plain_pipeline()
    (routed,) = pipeline.decide([Evidence(PORT, scope={"team": "a"})], scope={"team": "b"})
    assert routed.evidence.scope == {"team": "b"}


def test_what_an_arms_own_retriever_read_is_answered_from() -> None:
    pipeline, first, second = two_retrievers()
    (read,) = pipeline.read(pipeline.decide([PORT]))
    assert read.reader == "two"
    assert pipeline.complete([read])[0].text == f"two read p1,p2 for {PORT}"
    assert "".join(pipeline.stream(read)) == f"two read p1,p2 for {PORT}"
    assert (first.calls, second.calls) == (0, 1)


def test_a_fallback_with_another_retriever_does_not_read_the_first_ones_passages() -> None:
    pipeline, first, second = two_retrievers()
    generator = pipeline.arms["two"].generator
    assert isinstance(generator, PlainGenerator)
    generator.fail = lambda: GenerationError("down")
    (read,) = pipeline.read(pipeline.decide([PORT]))
    (answer,) = pipeline.complete([read])
    assert answer.text == f"one read p1,p2 for {PORT}"
    assert "".join(pipeline.stream(read)) == f"one read p1,p2 for {PORT}"
    assert (first.calls, second.calls) == (2, 1)


async def test_read_is_the_same_awaited() -> None:
    pipeline, _, _ = two_retrievers()
    routed = pipeline.decide([PORT])
    assert await pipeline.aread(routed) == pipeline.read(routed)
