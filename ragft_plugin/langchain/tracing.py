"""Deciding and answering as runs of a trace, each beneath the run of its question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ragft_plugin.course import Routed
from ragft_plugin.decision_record import decision_to_dict
from ragft_plugin.langchain.runs import Call, parents
from ragft_plugin.langchain.traced import watched
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.types import Evidence


def route(
    pipeline: Pipeline, calls: Sequence[Call], queries: Sequence[str | Evidence], request: Mapping[str, Any]
) -> list[Routed]:
    """Decide, as a run called ``route`` in each question's trace; its output is the decision."""
    runs = [call.manager.get_child().on_chain_start(None, {"input": call.question}, name="route") for call in calls]
    try:
        with parents(_under(calls, runs)):
            routed = watched(pipeline, [call.config for call in calls]).decide(queries, **request)
    except BaseException as error:
        for run in runs:
            run.on_chain_error(error)
        raise
    for run, item in zip(runs, routed, strict=True):
        run.on_chain_end(decision_to_dict(item.decision))
    return routed


async def aroute(
    pipeline: Pipeline, calls: Sequence[Call], queries: Sequence[str | Evidence], request: Mapping[str, Any]
) -> list[Routed]:
    """As ``route``, without blocking the event loop."""
    runs = [
        await call.manager.get_child().on_chain_start(None, {"input": call.question}, name="route") for call in calls
    ]
    try:
        with parents(_under(calls, runs)):
            routed = await watched(pipeline, [call.config for call in calls]).adecide(queries, **request)
    except BaseException as error:
        for run in runs:
            await run.on_chain_error(error)
        raise
    for run, item in zip(runs, routed, strict=True):
        await run.on_chain_end(decision_to_dict(item.decision))
    return routed


def _under(calls: Sequence[Call], runs: Sequence[Any]) -> list[Call]:
    return [Call.of(call.question, run, call.config) for call, run in zip(calls, runs, strict=True)]
