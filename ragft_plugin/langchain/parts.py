"""A pipeline from LangChain's parts, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ragft_plugin.arms import Arm
from ragft_plugin.errors import ConfigError
from ragft_plugin.langchain.generators import from_chat_model
from ragft_plugin.langchain.retrievers import from_retriever
from ragft_plugin.pipeline import Pipeline, Router
from ragft_plugin.types import Generation, Generator, Prompt


def pipeline_from(
    *,
    router: Router | None = None,
    models: Any = None,
    retriever: Any = None,
    costs: Mapping[str, float] | None = None,
    options: Mapping[str, Any] | None = None,
    **pipeline: Any,
) -> Pipeline:
    """A pipeline of arms made of LangChain's parts: each model alone and, if there is a retriever, behind it.

    Args:
        router: chooses among the arms; None takes one that has learnt nothing yet and compares what the passages cover
            with what the adapters were taught (``Router.cold``).
        models: name -> chat model, chain or generator; one alone is called ``base``. A model called ``base`` makes
            the arms ``base`` and ``rag``, one called ``adapter:legal`` makes ``adapter:legal`` and
            ``rag+adapter:legal``. None makes a pipeline that decides and retrieves, but cannot answer.
        retriever: a LangChain retriever, vector store or Runnable, or a retriever of the package.
        costs: arm -> price of one answer; arms not named cost nothing.
        options: for every arm's generator (``max_new_tokens``, ``timeout`` in seconds, ...).
        **pipeline: ``k``, ``retrieval_cost``, ``fallback``, ``log``; see ``Pipeline``.

    Raises:
        ConfigError: if a part is of no use, or ``costs`` names an arm that is not made.
    """
    named: Mapping[str, Any] = models if isinstance(models, Mapping) else {"base": models or _Mute()}
    found = None if retriever is None else from_retriever(retriever)
    prices = dict(costs or {})
    arms: list[Arm] = []
    for name, model in named.items():
        generator: Generator = from_chat_model(model)
        arms.append(Arm(name, generator, None, prices.pop(name, 0.0), options or {}))
        if found is not None:
            reading = "rag" if name == "base" else f"rag+{name}"
            arms.append(Arm(reading, generator, found, prices.pop(reading, 0.0), options or {}))
    if prices:
        made = ", ".join(arm.name for arm in arms)
        raise ConfigError(f"costs are given for {', '.join(prices)}, but the arms are: {made}")
    return Pipeline(arms, _cold(arms) if router is None else router, **pipeline)


def _cold(arms: Sequence[Arm]) -> Router:
    from ragft_plugin.routing import Router as LearntRouter

    return LearntRouter.cold([arm.name for arm in arms], retrieves={arm.name: arm.retrieves for arm in arms})


class _Mute:
    """Stands where no model was given: such a pipeline routes a retriever and answers nothing."""

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        self._refuse()

    def stream(self, prompt: Prompt, **options: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError("this pipeline was made without models, so it can retrieve but not answer; pass models=")
