"""What every embedding model does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, ClassVar

import numpy as np
from llama_index.core.embeddings import BaseEmbedding

from ragft_plugin.llama_index.testing.probes import DELAY, PATIENCE, longest_stall, recorded


class EmbeddingConformance:
    """Subclass and implement ``component``.

    Attributes:
        texts: different from each other.
    """

    texts: ClassVar[tuple[str, ...]] = ("Brelkon stands in Tarmora.", "Ovens are hot.", "A relay has a port.")

    def component(self, *, delay: float = 0.0) -> BaseEmbedding:
        """Make a fresh model."""
        raise NotImplementedError

    def test_is_an_embedding(self) -> None:
        """The base class is in the MRO."""
        assert "BaseEmbedding" in [base.__name__ for base in type(self.component()).__mro__]

    def test_sync_and_async_agree(self) -> None:
        """Queries and texts have the same vectors either way."""
        model, text = self.component(), self.texts[0]
        np.testing.assert_allclose(model.get_query_embedding(text), _run(model.aget_query_embedding(text)))
        np.testing.assert_allclose(model.get_text_embedding(text), _run(model.aget_text_embedding(text)))

    def test_a_batch_is_its_texts_one_by_one(self) -> None:
        """Batches keep order and value, sync and async; an empty one is empty."""
        model = self.component()
        single = [model.get_text_embedding(text) for text in self.texts]
        np.testing.assert_allclose(model.get_text_embedding_batch(list(self.texts)), single, rtol=1e-5)
        np.testing.assert_allclose(_run(model.aget_text_embedding_batch(list(self.texts))), single, rtol=1e-5)
        assert model.get_text_embedding_batch([]) == []

    def test_vectors_are_plain_floats_of_one_length(self) -> None:
        """They go into JSON."""
        vectors = self.component().get_text_embedding_batch(list(self.texts))
        assert len({len(vector) for vector in vectors}) == 1
        assert all(type(x) is float for vector in vectors for x in vector)

    def test_does_not_hold_the_event_loop(self) -> None:
        """Other tasks run while texts are encoded."""
        model = self.component(delay=DELAY)
        calls = {
            "aget_query_embedding": lambda: model.aget_query_embedding(self.texts[0]),
            "aget_text_embedding": lambda: model.aget_text_embedding(self.texts[0]),
            "aget_text_embedding_batch": lambda: model.aget_text_embedding_batch(list(self.texts)),
        }
        for name, call in calls.items():
            stall = longest_stall(call)
            assert stall < PATIENCE, f"{name} held the event loop for {stall * 1000:.0f} ms"

    def test_events_are_in_order(self) -> None:
        """Start comes before end."""
        model = self.component()
        with recorded() as (events, spans):
            model.get_text_embedding(self.texts[0])
        events.assert_pair("Embedding")
        assert not spans.open_spans


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(call)
