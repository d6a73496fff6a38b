"""Re-ranking: passages put in order by a dearer look at them, whatever found them.

The hook is a function of a question and passages that returns a score per passage, higher is better: a list, array or
tensor of shape (n,), or (n, 1) as the logits of a model with one output come. ``Reranked`` puts it behind any retriever
and is one itself; ``CrossEncoderScorer`` is the ready-made one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.errors import ConfigError, DataError, MissingExtraError
from ragft_plugin.types import Filter, Passage, Retriever

Scorer = Callable[[str, Sequence[Passage]], Sequence[float] | NDArray[Any]]


class Reranked:
    """A retriever whose passages are put in order by a scorer.

    Scores are the scorer's; what they were before stands in ``metadata["retrieval_score"]``. Equal scores keep their
    order. The filter is applied by the retriever, so a scorer never sees what it must not.

    Args:
        retriever: a knowledge base or any other.
        scorer: ``(question, passages) -> scores``, higher is better.
        candidates: passages to score per query, or ``k`` if that is more.

    Example:
        >>> class Two:
        ...     def retrieve(self, queries, k, filter=None):
        ...         return [[Passage("1", "no"), Passage("2", "yes, by train")][:k] for _ in queries]
        >>> longest = Reranked(Two(), lambda question, passages: [len(p.text) for p in passages])
        >>> longest.retrieve(["How?"], k=1)
        [[Passage(id='2', text='yes, by train', score=13.0, metadata={'retrieval_score': 0.0})]]
    """

    def __init__(self, retriever: Retriever, scorer: Scorer, *, candidates: int = 30) -> None:
        if candidates < 1:
            raise ConfigError(f"candidates must be 1 or more; got {candidates}")
        self.retriever = retriever
        self._scorer = scorer
        self._candidates = candidates

    @property
    def fingerprint(self) -> str:
        """As that of the retriever."""
        return str(getattr(self.retriever, "fingerprint", ""))

    def retrieve(
        self, queries: Sequence[str], k: int, filter: Filter | None = None, **options: Any
    ) -> list[list[Passage]]:
        """Return up to ``k`` passages per query, best first.

        Args:
            queries: texts.
            k: at most this many per query.
            filter: condition on metadata.
            **options: for the retriever.

        Raises:
            DataError: the scorer returns anything else than a finite number per passage.
        """
        found = self.retriever.retrieve(queries, self._asked(k), filter, **options)
        return [self._ordered(query, passages)[:k] for query, passages in zip(queries, found, strict=True)]

    async def aretrieve(
        self, queries: Sequence[str], k: int, filter: Filter | None = None, **options: Any
    ) -> list[list[Passage]]:
        """As ``retrieve``: waits for the retriever if that can be waited for, and scores in a thread."""
        if not hasattr(self.retriever, "aretrieve"):
            return await asyncio.to_thread(self.retrieve, queries, k, filter, **options)
        found = await self.retriever.aretrieve(queries, self._asked(k), filter, **options)
        return await asyncio.to_thread(
            lambda: [self._ordered(query, passages)[:k] for query, passages in zip(queries, found, strict=True)]
        )

    def _asked(self, k: int) -> int:
        return max(k, self._candidates) if k > 0 else k

    def _ordered(self, query: str, passages: Sequence[Passage]) -> list[Passage]:
        if not passages:
            return []
        scores = _checked(self._scorer(query, passages), passages)
        scored = [
            replace(passage, score=score, metadata={**passage.metadata, "retrieval_score": passage.score})
            for passage, score in zip(passages, scores, strict=True)
        ]
        return sorted(scored, key=lambda passage: -passage.score)


def _checked(given: object, passages: Sequence[Passage]) -> list[float]:
    """Return the scores that a scorer has given.

    Raises:
        DataError: they are no numbers, not one per passage, or not finite.
    """
    given = _plain(given)
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping, Set)):
        given = [_plain(score) for score in given]
    n = len(passages)
    expected = f"for {n} passages, expected {n} numbers: shape ({n},) or ({n}, 1)"
    try:
        scores = np.asarray(given)
        if scores.dtype.kind not in "biufO":  # numpy would read numbers from strings
            raise TypeError(f"{scores.dtype.type.__name__} is no number")
        scores = scores.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the scorer returned {str(given)[:80]} {expected}; {error}") from error
    if scores.shape not in ((n,), (n, 1)):
        raise DataError(f"the scorer returned {str(given)[:80]}, shape {scores.shape}, {expected}")
    found: list[float] = scores.ravel().tolist()
    bad = next((i for i, finite in enumerate(np.isfinite(found)) if not finite), None)
    if bad is not None:
        raise DataError(
            f"the scorer returned {found[bad]} for passage {passages[bad].id!r}, expected a finite number; does its "
            "model fit the device?"
        )
    return found


def _plain(given: Any) -> Any:
    """Return lists and numbers instead of arrays and tensors, of whatever library, device and type."""
    return given.tolist() if hasattr(given, "tolist") else given


class CrossEncoderScorer:
    """A cross-encoder of sentence-transformers as a scorer. Extra: ``sentence-transformers``.

    Scores are the model's logits: an activation like the sigmoid keeps their order in theory, but rounds confident
    ones to exactly 1. Pairs that are too long are cut to what the model's positions allow: a tokenizer that tells no
    limit would let the model fail on the first long passage.

    Args:
        model: a ``CrossEncoder`` with one output, or the name or folder of one. An object is used as it is and its
            limit lowered if it is above the model's positions.
        batch_size: pairs per forward pass.
        max_length: tokens per pair, if fewer than the model allows are enough.

    Raises:
        ConfigError: the model has several outputs, so that it classifies and does not rank.
    """

    def __init__(self, model: Any, *, batch_size: int = 32, max_length: int | None = None) -> None:
        if isinstance(model, (str, Path)):
            try:
                from sentence_transformers import CrossEncoder
            except ImportError as error:
                raise MissingExtraError("sentence-transformers", "sentence-transformers") from error
            model = CrossEncoder(str(model))
        outputs = getattr(model.config, "num_labels", 1)
        if outputs != 1:
            raise ConfigError(f"the cross-encoder has {outputs} outputs, expected 1; it classifies and does not rank")
        limits = [model.max_seq_length, _positions(model.config), max_length]
        model.max_seq_length = int(min(limit for limit in limits if limit))
        self._model = model
        self._batch_size = batch_size

    def __call__(self, query: str, passages: Sequence[Passage | str]) -> list[float]:
        """Return a logit per passage (or text); higher is better."""
        from torch.nn import Identity

        pairs = [(query, passage if isinstance(passage, str) else passage.text) for passage in passages]
        if not pairs:
            return []
        scores = self._model.predict(
            pairs, batch_size=self._batch_size, show_progress_bar=False, activation_fn=Identity()
        )
        return [float(score) for score in scores]


def _positions(config: Any) -> int | None:
    """Return how many tokens the model has positions for."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    # Models of the RoBERTa family count positions from the padding token's id plus one.
    offset = "roberta" in str(config.model_type) or config.model_type in ("camembert", "mpnet")
    return limit - (getattr(config, "pad_token_id", None) or 1) - 1 if offset else limit
