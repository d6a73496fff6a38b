"""Adapter records: what the manifests of a project's adapters tell the router.

When and on what each was trained, to notice that it is stale; and how close a question is to its training questions,
to route before there are outcomes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ragft_plugin.config import Config, parse_arm
from ragft_plugin.errors import AdapterError, MissingExtraError
from ragft_plugin.routing import AdapterRecord

if TYPE_CHECKING:
    from ragft_plugin.lora.coverage import CoverageIndex

logger = logging.getLogger(__name__)

WEIGHTS = "adapter_model.safetensors"


class AdapterRecords:
    """Records of all adapters of a project.

    An adapter without a manifest (trained elsewhere) or one that only a server has is unknown: it gets no record, so
    that nothing is claimed of it.

    Args:
        config: the project's settings.

    Attributes:
        fingerprints: "adapter:NAME" -> hash of its weights.
    """

    def __init__(self, config: Config) -> None:
        self._records: dict[str, AdapterRecord] = {}
        self._coverage: dict[str, CoverageIndex] = {}
        self.fingerprints: dict[str, str] = {}
        for name, folder in config.adapters.items():
            try:
                self._read(config, name, folder)
            except (AdapterError, MissingExtraError) as error:
                logger.warning("adapter %s: nothing is known of its training: %s", name, error)

    def by_arm(self, arms: Sequence[str]) -> dict[str, AdapterRecord]:
        """Arm -> record of its adapter, for the arms that have one."""
        named = {arm: parse_arm(arm).adapter for arm in arms}
        return {arm: self._records[name] for arm, name in named.items() if name in self._records}

    def facts(self, questions: Sequence[str]) -> list[Mapping[str, float]]:
        """Per question, its closeness to the training questions of each adapter: {"close_NAME": 0..1}."""
        found: list[dict[str, float]] = [{} for _ in questions]
        for name, index in self._coverage.items():
            for fact, value in zip(found, index.closeness(questions).tolist(), strict=True):
                fact[closeness_fact(name)] = value
        return list(found)

    def __bool__(self) -> bool:
        return bool(self._coverage)

    def _read(self, config: Config, name: str, folder: str) -> None:
        from ragft_plugin.lora.coverage import CoverageIndex
        from ragft_plugin.lora.manifest import COVERAGE, Manifest

        path = config.path(folder)
        manifest = Manifest.read(path)
        if manifest is None:
            return
        if WEIGHTS in manifest.files:
            self.fingerprints[f"adapter:{name}"] = manifest.files[WEIGHTS]
        until = config.known_until.get(name, manifest.trained_at)
        fact = None
        if (path / COVERAGE).is_file():
            self._coverage[name] = CoverageIndex.load(path / COVERAGE)
            fact = closeness_fact(name)
        self._records[name] = AdapterRecord(until.isoformat(), _identified(manifest.data.passages), closeness=fact)


def closeness_fact(adapter: str) -> str:
    """Name of the fact that tells how close a question is to an adapter's training questions."""
    return f"close_{adapter}"


def _identified(passages: Mapping[str, str]) -> dict[str, str]:
    """Passages trained on that have an id of their own.

    Training rows may hold bare texts, which are numbered within their row: such a number names no passage of the
    knowledge base, and one that happens to have it must not count as changed.
    """
    numbers = {str(i + 1) for i in range(len(passages))}
    return {} if passages.keys() == numbers else dict(passages)
