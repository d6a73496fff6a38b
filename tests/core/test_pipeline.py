import asyncio
import threading

import pytest
from stubs import AsyncEcho, Broken, Echo, Scripted, Shelf

from ragft_plugin.arms import Arm
from ragft_plugin.errors import ConfigError, DataError, GenerationError, PartialAnswerError
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.types import Decision, Evidence, Gather

READ = Gather("passages")


def build(script=None, *, base=None, rag=None, default="base", **settings):
    shelf = Shelf()
    base, rag = base or Echo("base"), rag or Echo("rag")
    arms = [Arm("base", base), Arm("rag", rag, shelf, cost=1.0)]
    router = Scripted(["base", "rag"], script or {}, default)
    return Pipeline(arms, router, k=2, retrieval_cost=1.0, **settings), shelf, base, rag, router


def test_a_batch_is_one_retrieval_and_one_generation_per_arm():
    script = {"a": ([READ], "rag"), "b": ([], "base"), "c": ([READ], "base")}
    pipeline, shelf, base, rag, router = build(script)
    answers = pipeline.answer_batch(["a", "b", "c", "d"])
    assert [a.arm for a in answers] == ["rag", "base", "base", "base"]
    assert shelf.calls == [(["a", "c"], 2, None)]
    assert (base.batches, rag.batches) == ([3], [1])
    assert router.calls == 2  # once for all, once for the two that gathered


def test_passages_retrieved_for_deciding_are_those_answered_from():
    pipeline, shelf, *_ = build({"a": ([READ], "rag")})
    answer = pipeline.answer("a")
    assert [p.id for p in answer.passages] == ["p0", "p1"]
    assert answer.text == "rag: a (2 passages)"
    assert len(shelf.calls) == 1


def test_a_closed_book_answer_has_no_passages_although_some_were_retrieved():
    pipeline, *_ = build({"c": ([READ], "base")})
    assert pipeline.answer("c").passages == ()


def test_an_accepted_draft_is_the_answer_and_nothing_runs_again():
    pipeline, _, base, *_ = build({"a": ([Gather("draft", "base")], "base")})
    answer = pipeline.answer("a")
    assert answer.text == "base: a (closed)"
    assert base.batches == [1]
    assert answer.decision is not None


def test_a_rejected_draft_stays_evidence_and_another_arm_answers():
    pipeline, _, base, rag, _ = build({"a": ([Gather("draft", "base"), READ], "rag")})
    assert pipeline.answer("a").arm == "rag"
    assert (base.batches, rag.batches) == ([1], [1])


def test_a_drafting_arm_that_reads_retrieves_first():
    pipeline, shelf, *_ = build({"a": ([Gather("agreement", "rag")], "rag")})
    (routed,) = pipeline.decide(["a"])
    assert routed.evidence.spent == {"passages": 1.0, "agreement": 0.0}
    assert pipeline.complete([routed])[0].text == "rag: a (2 passages)"
    assert len(shelf.calls) == 1


def test_what_was_decided_is_not_decided_again():
    pipeline, _, _, _, router = build()
    routed = pipeline.decide(["a", "b"])
    calls = router.calls
    pipeline.complete(routed)
    pipeline.passages(routed)
    assert router.calls == calls


def test_scope_and_k_reach_the_retriever():
    pipeline, shelf, *_ = build(default="rag")
    assert len(pipeline.answer("a", k=5, scope={"tenant": "x"}).passages) == 5
    assert shelf.calls == [(["a"], 5, {"tenant": "x"})]


def test_the_forced_arm_answers_and_the_decision_says_so():
    pipeline, *_ = build({"a": ([READ], "rag")})
    answer = pipeline.answer("a", arm="base")
    assert answer.arm == "base"
    assert answer.decision.forced


def test_sync_async_batch_and_stream_agree():
    script = {"a": ([READ], "rag"), "b": ([Gather("draft", "base")], "base")}
    for kind in (Echo, AsyncEcho):
        pipeline, *_ = build(script, base=kind("base"), rag=kind("rag"))
        queries = ["a", "b", "c"]
        single = [pipeline.answer(q).text for q in queries]

        async def gathered(pipeline=pipeline, queries=queries):
            streamed = []
            for query in queries:
                stream = pipeline.stream(query)
                streamed.append("".join([piece async for piece in stream]).strip())
            return [a.text for a in await pipeline.aanswer_batch(queries)], streamed

        batched, streamed = asyncio.run(gathered())
        assert single == [a.text for a in pipeline.answer_batch(queries)] == batched
        assert single == streamed == ["".join(pipeline.stream(q)).strip() for q in queries]


def test_a_failing_arm_falls_back_by_value_and_the_decision_says_so():
    pipeline, *_ = build(default="base", base=Broken("base"))
    answer = pipeline.answer("a")
    assert (answer.arm, answer.decision.arm, answer.decision.fallback) == ("rag", "base", "rag")
    assert answer.decision.reasons[0] == "base failed (RuntimeError); rag answered instead"


def test_one_poisoned_question_does_not_move_the_others_of_its_batch():
    pipeline, *_ = build(base=Broken("base", poison="bad"))
    answers = pipeline.answer_batch(["good", "bad", "fine"])
    assert [a.arm for a in answers] == ["base", "rag", "base"]
    assert [a.decision.fallback for a in answers] == [None, "rag", None]


def test_arms_that_share_a_generator_are_one_generation():
    both = Echo("both")
    pipeline, shelf, *_ = build({"b": ([], "rag"), "d": ([], "rag")}, base=both, rag=both)
    answers = pipeline.answer_batch(["a", "b", "c", "d"])
    assert both.batches == [4]
    assert shelf.calls == [(["b", "d"], 2, None)]
    assert [a.arm for a in answers] == ["base", "rag", "base", "rag"]
    read = "2 passages"
    assert [a.text for a in answers] == [
        "both: a (closed)",
        f"both: b ({read})",
        "both: c (closed)",
        f"both: d ({read})",
    ]
    assert [len(a.passages) for a in answers] == [0, 2, 0, 2]


def test_arms_that_share_a_generator_but_not_its_options_are_apart():
    both = Echo("both")
    arms = [Arm("base", both, options={"stop": ["."]}), Arm("rag", both, Shelf())]
    pipeline = Pipeline(arms, Scripted(["base", "rag"], {"b": ([], "rag")}, "base"))
    pipeline.answer_batch(["a", "b", "c"])
    assert both.batches == [2, 1]


def test_a_shared_generation_that_fails_is_tried_arm_by_arm_and_then_one_by_one():
    both = Broken("both", poison="bad")
    script = {"b": ([], "rag"), "bad": ([], "rag")}
    pipeline, *_ = build(script, base=both, rag=both, fallback=())
    with pytest.raises(GenerationError, match="'rag' failed"):
        pipeline.answer_batch(["a", "b", "bad", "c"])
    assert both.batches == [2, 1]  # "a" and "c" by the one arm, "b" alone by the other

    class Missing(Shelf):
        def retrieve(self, queries, k, filter=None):
            raise OSError("the index is gone")

    both = Echo("both")
    arms = [Arm("base", both), Arm("rag", both, Missing())]
    pipeline = Pipeline(arms, Scripted(["base", "rag"], {"b": ([], "rag")}, "base"))
    answers = pipeline.answer_batch(["a", "b", "c"])
    assert [a.decision.fallback for a in answers] == [None, "base", None]
    assert [a.text for a in answers] == [f"both: {query} (closed)" for query in "abc"]
    assert both.batches == [2, 1]


def test_without_fallback_the_error_is_raised_with_its_cause():
    pipeline, *_ = build(base=Broken("base"), fallback=())
    with pytest.raises(GenerationError, match="'base' failed and no fallback answered; last error: out of memory"):
        pipeline.answer("a")


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_stream_falls_back_before_the_first_piece_and_never_after(mode):
    def run(stream):
        if mode == "sync":
            return list(stream)

        async def collect():
            return [piece async for piece in stream]

        return asyncio.run(collect())

    pipeline, *_ = build(base=Broken("base", after=0))
    stream = pipeline.stream("a")
    assert "".join(run(stream)).strip() == "rag: a (2 passages)"
    assert stream.answer.decision.fallback == "rag"
    pipeline, *_ = build(base=Broken("base", after=2))
    with pytest.raises(PartialAnswerError) as caught:
        run(pipeline.stream("a"))
    assert caught.value.text == "base: a "


def test_a_draft_is_not_streamed_before_it_is_accepted():
    pipeline, *_ = build({"a": ([Gather("draft", "base")], "rag")})
    assert next(iter(pipeline.stream("a"))).startswith("rag")


def test_every_decision_is_logged_once_with_its_cost():
    class Log:
        def __init__(self):
            self.rows = []

        def append(self, decision, *, query, cost, passage_ids=(), evidence=None, arm_costs=None):
            assert evidence.query == query
            assert arm_costs == {"base": 0.0, "rag": 1.0}
            self.rows.append((decision.arm, query, cost, list(passage_ids)))

    log = Log()
    script = {"a": ([READ], "rag"), "b": ([READ], "base"), "c": ([Gather("agreement", "rag")], "base")}
    pipeline, *_ = build(script, log=log)
    pipeline.answer_batch(["a", "b", "c", "d"])
    list(pipeline.stream("a"))
    # one retrieval is paid once, also where it only served to decide, or served two arms
    assert log.rows == [
        ("rag", "a", 1.0, ["p0", "p1"]),
        ("base", "b", 1.0, ["p0", "p1"]),
        ("base", "c", 1.0, ["p0", "p1"]),
        ("base", "d", 0.0, []),
        ("rag", "a", 1.0, ["p0", "p1"]),
    ]


@pytest.mark.parametrize("query", ["", "   \n", "x" * 100_000, "half a character: \ud800"])
def test_an_empty_or_huge_question_is_refused_with_the_cure(query):
    pipeline, *_ = build()
    with pytest.raises(DataError, match=r"empty; pass|100,000 characters|not valid Unicode"):
        pipeline.answer(query)


def test_unknown_arms_and_settings_are_named():
    with pytest.raises(ConfigError, match="no arm named 'rga'; the arms are: base, rag"):
        build()[0].answer("a", arm="rga")
    with pytest.raises(ConfigError, match="k must be at least 1, not 0"):
        build()[0].answer("a", k=0)
    with pytest.raises(ConfigError, match="takes a list of questions"):
        build()[0].answer_batch("a")
    with pytest.raises(ConfigError, match="more than once: base"):
        Pipeline([Arm("base", Echo("x")), Arm("base", Echo("y"))], Scripted(["base"], {}, "base"))
    with pytest.raises(ConfigError, match="at least one arm"):
        Pipeline([], Scripted([], {}, "base"))
    with pytest.raises(ConfigError, match="no arm named 'rag'"):
        Pipeline([Arm("base", Echo("x"))], Scripted(["base", "rag"], {}, "base"))


def test_a_router_that_never_decides_is_an_error_not_a_loop():
    class Greedy:
        arms = ("base",)

        def next(self, evidence, *, cost_weight=None, arm=None):
            return [Gather("draft", "base") for _ in evidence]

    with pytest.raises(ConfigError, match="without deciding"):
        Pipeline([Arm("base", Echo("base"))], Greedy()).answer("a")


def test_the_event_loop_runs_on_while_a_blocking_generator_answers():
    release = threading.Event()

    class Slow(Echo):
        def generate(self, prompts, **options):
            release.wait(5)
            return super().generate(prompts, **options)

    pipeline, *_ = build(base=Slow("base"))

    async def run():
        answer = asyncio.create_task(pipeline.aanswer("a"))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not answer.done()
        release.set()
        return await answer

    assert asyncio.run(run()).arm == "base"


def test_a_decision_can_be_made_without_any_generator_running():
    pipeline, _, base, rag, _ = build({"a": ([READ], "rag")})
    (routed,) = pipeline.decide(["a"])
    assert isinstance(routed.decision, Decision)
    assert base.batches == rag.batches == []


def test_facts_of_a_question_reach_the_router_and_the_callers_own_come_first():
    seen = []

    class Looking(Scripted):
        def next(self, evidence, **options):
            seen.extend(dict(e.facts) for e in evidence)
            return super().next(evidence, **options)

    def facts(questions):
        return [{"words": float(len(question.split())), "mine": 0.0} for question in questions]

    pipeline = Pipeline([Arm("base", Echo("base"))], Looking(["base"], {}, "base"), facts=facts)
    routed = pipeline.decide(["two words", Evidence("three words here", facts={"mine": 1.0})])
    assert seen == [{"words": 2.0, "mine": 0.0}, {"words": 3.0, "mine": 1.0}]
    assert routed[0].evidence.facts["words"] == 2.0


def test_signals_with_a_price_of_their_own_are_in_the_cost_that_is_logged():
    class Priced(Scripted):
        def signal_price(self, stage):
            return {"question": 0.1, "passages": 0.35}[stage]

    class Log:
        def __init__(self):
            self.costs = {}

        def append(self, decision, *, query, cost, **fields):
            self.costs[query] = cost

    log = Log()
    arms = [Arm("base", Echo("base")), Arm("rag", Echo("rag"), Shelf(), cost=1.0)]
    pipeline = Pipeline(arms, Priced(["base", "rag"], {"b": ([], "rag")}, "base"), retrieval_cost=1.0, log=log)
    pipeline.answer_batch(["a", "b"])
    pipeline.answer("c", arm="base")  # the caller decided; no signal was read
    assert log.costs == {"a": 0.1, "b": 1.1, "c": 0.0}
