"""From settings to a pipeline: the one place that builds everything.

Used by the command line, the demo and both frameworks, so that the same ragft.yaml gives the same answers
everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ragft_plugin.adapter_records import AdapterRecords
from ragft_plugin.arms import Arm
from ragft_plugin.config import Config, parse_arm
from ragft_plugin.errors import ConfigError, StoreError
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.routing import Router
from ragft_plugin.types import Encoder, Generator

if TYPE_CHECKING:
    from ragft_plugin.evaluation.decision_log import DecisionLog
    from ragft_plugin.lora import LoraModel
    from ragft_plugin.retrieval import Chunker, KnowledgeBase

MakeGenerator = Callable[[str | None], Generator]


class Project:
    """What ``ragft.yaml`` describes, opened when it is needed and closed together.

    Args:
        config: the settings.

    Example:
        >>> with Project(read_config("ragft.yaml")) as project:  # doctest: +SKIP
        ...     project.pipeline().answer("Who signs?").text
        'The notary.'
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._stack = ExitStack()
        self._model: LoraModel | None = None
        self._knowledge_base: KnowledgeBase | None = None
        self._adapter_records: AdapterRecords | None = None

    def __enter__(self) -> Project:
        """Enter; parts are opened later."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what was opened."""
        self.close()

    def close(self) -> None:
        """Close the model's worker and the knowledge base."""
        self._stack.close()

    def knowledge_base(self, *, create: bool = False) -> KnowledgeBase:
        """The knowledge base, opened once; made if it is missing and ``create`` is set.

        Raises:
            ConfigError: if none is configured, or it is missing.
            StoreError: if it cannot be opened (damaged, locked, made with another encoder).
        """
        if self._knowledge_base is None:
            from ragft_plugin.retrieval import KnowledgeBase

            if self.config.knowledge_base is None:
                raise ConfigError("no knowledge_base is set in ragft.yaml")
            path = self.config.path(self.config.knowledge_base)
            if KnowledgeBase.exists(path):
                opened = KnowledgeBase.open(path, encoder=self._encoder(), read_only=not create)
            elif create:
                unnamed = self.config.encoder is None
                opened = KnowledgeBase.create(path, encoder="hashing" if unnamed else self._encoder())
            else:
                raise ConfigError(f"there is no knowledge base at {path}; fill one with: ragft index DOCUMENTS")
            self._stack.callback(opened.close)
            if self.config.encoder == "none" and not opened.fingerprint.startswith("bm25@"):
                raise StoreError(f"{path} holds vectors, and ragft.yaml says encoder: none; leave that setting out")
            self._knowledge_base = opened
        return self._knowledge_base

    def _encoder(self) -> Encoder | None:
        """The encoder that the settings name, None where they name none."""
        from ragft_plugin.retrieval.encoders import ENCODERS, named_encoder

        name = self.config.encoder
        if name is None or name == "none":
            return None
        return named_encoder(name if name in ENCODERS else str(self.config.path(name)))

    def chunker(self) -> Chunker:
        """How documents are cut."""
        from ragft_plugin.retrieval import Chunker

        return Chunker(self.config.chunks.size, self.config.chunks.overlap)

    def model(self) -> LoraModel:
        """The local model with its adapters, loaded once.

        Raises:
            AdapterError: if an adapter does not fit the base.
        """
        if self._model is None:
            from ragft_plugin.lora import LoraModel

            # A folder beside the settings if there is one, else a name on the hub.
            local = self.config.path(self.config.base)
            model = LoraModel.load(str(local) if local.exists() else self.config.base)
            self._stack.callback(model.close)
            for name, folder in self.config.adapters.items():
                model.load_adapter(name, self.config.path(folder))
            self._model = model
        return self._model

    def generator(self, adapter: str | None) -> Generator:
        """A generator for the base (None) or one adapter, local or on the configured server."""
        options = self.config.generation.model_dump()
        server = self.config.server
        if server is None:
            return self.model().generator(adapter, **options)
        from ragft_plugin.lora.openai import OpenAIGenerator

        key = os.environ.get(server.api_key_env) if server.api_key_env else None
        name = server.base if adapter is None else server.model.format(adapter=adapter, base=server.base)
        return OpenAIGenerator(server.url, name, api_key=key, **options)

    def arms(self) -> list[Arm]:
        """Every arm of the settings."""
        generators: dict[str | None, Generator] = {}
        arms: list[Arm] = []
        for name in self.config.arm_names():
            parsed = parse_arm(name)
            if parsed.adapter not in generators:
                generators[parsed.adapter] = self.generator(parsed.adapter)
            retriever = self.knowledge_base() if parsed.retrieves else None
            arms.append(Arm(name, generators[parsed.adapter], retriever, cost=self.config.arm_cost(name)))
        return arms

    def adapter_records(self) -> AdapterRecords:
        """What the adapters' manifests tell of their training, read once."""
        if self._adapter_records is None:
            self._adapter_records = AdapterRecords(self.config)
        return self._adapter_records

    def fingerprints(self) -> dict[str, str]:
        """What a router was fitted behind: the encoder of the knowledge base and the weights of the adapters.

        Documents come and go; a router stands that. Another encoder scores differently and another adapter knows
        other things: a router of before is then demoted to its safe arm until it is fitted anew.
        """
        found = dict(self.adapter_records().fingerprints)
        if self.config.knowledge_base is not None and self.config.path(self.config.knowledge_base).exists():
            found["knowledge_base"] = self.knowledge_base().fingerprint.rsplit("@", 1)[0]
        return found

    def router(self) -> Router:
        """The fitted router, or a cold one that compares coverage and closeness until there are outcomes.

        Either knows when and on what the adapters were trained, so that a stale one is not asked closed-book, and
        explores as the settings say.
        """
        names = self.config.arm_names()
        records = self.adapter_records().by_arm(names)
        path = self.config.path(self.config.router)
        if path.exists():
            router = Router.load(path, encoder=_encoder_of(path))
            router.adapters = records
            if router.fingerprints.keys() - {"encoder"}:
                router.check(self.fingerprints())
        else:
            router = Router.cold(names, retrieves={name: parse_arm(name).retrieves for name in names}, adapters=records)
        if self.config.cost_weight:
            router.cost_weight = self.config.cost_weight
        if self.config.exploration:
            router.policy, router.exploration = "epsilon_greedy", self.config.exploration
        return router

    def log(self) -> DecisionLog | None:
        """The decision log, if one is configured: a file beside the settings, or an SQLAlchemy URL."""
        if self.config.log is None:
            return None
        from ragft_plugin.evaluation.decision_log import DecisionLog

        place = self.config.log if "://" in self.config.log else self.config.path(self.config.log)
        log = DecisionLog(place, texts=True)
        self._stack.callback(log.close)
        return log

    def pipeline(self, *, router: Router | None = None, **settings: Any) -> Pipeline:
        """The pipeline over all arms.

        Args:
            router: instead of the configured one.
            **settings: for ``Pipeline``, over the configured ones.
        """
        records = self.adapter_records()
        defaults: Mapping[str, Any] = {
            "k": self.config.k,
            "retrieval_cost": self.config.costs.retrieval,
            "log": self.log(),
            "facts": records.facts if records else None,
        }
        return Pipeline(self.arms(), router or self.router(), **{**defaults, **settings})


def _encoder_of(router: Path) -> Encoder | None:
    """The encoder a router on disk was fitted with, None for TF-IDF."""
    from ragft_plugin.routing.persistence import encoder_fingerprint

    if encoder_fingerprint(router) == "tfidf":
        return None
    from ragft_plugin.retrieval import MiniLMEncoder

    return MiniLMEncoder()
