"""A selector that drops into LlamaIndex' own routers, with scores, reasons and a safe fallback."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import QueryBundle
from llama_index.core.tools.types import ToolMetadata
from pydantic import ConfigDict

from ragft_plugin.arms import Arm
from ragft_plugin.errors import ConfigError, GenerationError
from ragft_plugin.llama_index.events import announce
from ragft_plugin.llama_index.traced import watched
from ragft_plugin.pipeline import Pipeline, Router
from ragft_plugin.types import Decision, Generation, Prompt, Retriever

logger = logging.getLogger(__name__)


class RoutedSelection(SelectorResult):
    """What was selected, with the decision behind it; LlamaIndex keeps it in ``metadata["selector_result"]``.

    Attributes:
        decision: None when the safe choice was taken because deciding failed.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    decision: Decision | None = None


class RoutedSelector(BaseSelector):
    """Selects the tool that stands for the chosen arm.

    A question that cannot be decided (empty, too long, a retriever that is down) gets the safe choice, with the
    reason in words; an index is never out of range. Choices that stand for no arm at all are a ``ConfigError``.

    Args:
        pipeline: decides. Its arms need not answer; ``from_router`` makes one of a bare router.
        tools: arm -> name of the tool, or of several to be combined; an arm that is absent is its own tool. Where no
            choice has such a name, choices stand for the router's arms in order, if there are as many.
        fallback: name of the safe choice; None is the first.
        **request: ``scope``, ``k``, ``cost_weight`` and ``arm`` for every query.

    Example:
        >>> from ragft_plugin.types import Decision
        >>> class Always:
        ...     arms = ("rag", "adapter")
        ...
        ...     def next(self, evidence, **request):
        ...         return [Decision("d", "adapter", {"rag": 0.0, "adapter": 1.0}, confidence=0.8) for _ in evidence]
        >>> RoutedSelector.from_router(Always()).select(["search documents", "ask the expert"], "Who?").ind
        1
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        tools: Mapping[str, str | Sequence[str]] | None = None,
        fallback: str | None = None,
        **request: Any,
    ) -> None:
        self.pipeline = pipeline
        self._tools = {arm: (t,) if isinstance(t, str) else tuple(t) for arm, t in (tools or {}).items()}
        self._fallback = fallback
        self._request = request
        for arm in self._tools:
            if arm not in pipeline.arms:
                raise ConfigError(f"tools names no arm: {arm!r}; the arms are: {', '.join(pipeline.arms)}")
        pipeline.stream("", **request)  # runs nothing, but checks the request now and not at the first query

    @classmethod
    def from_router(
        cls, router: Router, *, retriever: Retriever | None = None, k: int = 3, **settings: Any
    ) -> RoutedSelector:
        """A selector over a router alone; with a retriever if the router looks at passages before it decides."""
        arms = [Arm(name, _Mute(), retriever) for name in router.arms]
        return cls(Pipeline(arms, router, k=k), **settings)

    def _select(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        known = self._known(choices)
        try:
            (routed,) = watched(self.pipeline).decide([query.query_str], **self._request)
        except Exception as error:
            return self._safe(known, error)
        return self._selection(known, routed.decision)

    async def _aselect(self, choices: Sequence[ToolMetadata], query: QueryBundle) -> SelectorResult:
        known = self._known(choices)
        try:
            (routed,) = await watched(self.pipeline).adecide([query.query_str], **self._request)
        except Exception as error:
            return self._safe(known, error)
        return self._selection(known, routed.decision)

    def _known(self, choices: Sequence[ToolMetadata]) -> dict[str, tuple[int, ...]]:
        """Which choices stand for which arm: arm -> indexes; the safe choice under the empty name."""
        names = [choice.name for choice in choices]
        if not names:
            raise ConfigError("there is nothing to select from: the list of choices is empty")
        if self._fallback is not None and self._fallback not in names:
            raise ConfigError(f"the fallback {self._fallback!r} is not among the choices: {names}")
        arms = self.pipeline.router.arms
        known = {}
        for arm in arms:
            found = tuple(i for i, name in enumerate(names) if name in self._tools.get(arm, (arm,)))
            if len(found) == len(self._tools.get(arm, (arm,))):
                known[arm] = found
        if not known and not self._tools and len(names) == len(arms):
            known = {arm: (i,) for i, arm in enumerate(arms)}
        if not known:
            raise ConfigError(
                f"no choice stands for an arm: choices {names}, arms {list(arms)}; name the tools after the arms or "
                "pass tools={arm: tool name}"
            )
        return {**known, "": (0 if self._fallback is None else names.index(self._fallback),)}

    def _selection(self, known: Mapping[str, tuple[int, ...]], decision: Decision) -> SelectorResult:
        announce(decision)
        reason = "; ".join((f"{decision.arm}, confidence {decision.confidence:.2f}", _scores(decision)))
        if decision.reasons:
            reason += "; " + "; ".join(decision.reasons)
        arm = decision.arm
        if arm not in known:
            arm = max((a for a in known if a), key=lambda a: decision.values.get(a, float("-inf")))
            reason = f"{arm}, the best of those on offer, in place of {reason}"
        selections = [SingleSelection(index=index, reason=reason) for index in known[arm]]
        return RoutedSelection(selections=selections, decision=decision)

    def _safe(self, known: Mapping[str, tuple[int, ...]], error: Exception) -> SelectorResult:
        logger.warning("selecting failed (%s: %s); taking the safe choice", type(error).__name__, error)
        reason = f"safe choice: {type(error).__name__}: {error}"
        return RoutedSelection(selections=[SingleSelection(index=index, reason=reason) for index in known[""]])

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts_dict: PromptDictType) -> None:
        pass


class _Mute:
    """Stands where an arm needs a generator that is never to answer."""

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        raise GenerationError("this selector was made of a router alone and cannot draft; make it of a pipeline")

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        raise GenerationError("this selector was made of a router alone and cannot answer; make it of a pipeline")


def _scores(decision: Decision) -> str:
    return "values " + ", ".join(f"{arm} {value:.2f}" for arm, value in decision.values.items())
