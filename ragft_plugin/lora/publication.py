"""Publication: a trained adapter becomes a version in the registry, measured by the code that will serve it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ragft_plugin.lora.base import Base
from ragft_plugin.lora.coverage import CoverageIndex
from ragft_plugin.lora.fingerprints import Fingerprints, fingerprints
from ragft_plugin.lora.manifest import COVERAGE, Manifest, TrainedOn
from ragft_plugin.lora.model import LoraModel
from ragft_plugin.lora.probes import take_probe
from ragft_plugin.lora.registry import AdapterVersion, Registry

Measure = Callable[[LoraModel, str | None], Mapping[str, float]]
"""Takes a model and the name of an adapter (None: the one before training, or the base), returns figures."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an adapter comes from.

    Attributes:
        base: the base as it was named.
        device: that it is measured on.
        fingerprints: of base, tokenizer and template.
        start: the adapter that training started from, or None for a new one.
    """

    base: str
    device: str
    fingerprints: Fingerprints
    start: Path | None = None

    @classmethod
    def of(cls, base: Base, label: str, start: Path | None = None) -> Origin:
        """The origin of what is trained over a loaded base."""
        prints = fingerprints(base.folder, base.tokenizer, base.renderer.template)
        return cls(label, str(base.model.device), prints, start)


def publish(
    origin: Origin,
    final: Path,
    out: str | Path,
    *,
    name: str,
    method: str,
    settings: Mapping[str, Any],
    data: TrainedOn,
    metrics: Mapping[str, float],
    measure: Measure,
    questions: Sequence[str],
    promote: bool,
) -> tuple[AdapterVersion, dict[str, float], dict[str, float]]:
    """Measure an adapter before and after training, and put it into a registry.

    Args:
        origin: where it comes from.
        final: its files.
        out: folder of the registry.
        name: of the adapter.
        method: how it was trained, for the manifest.
        settings: what the training was called with.
        data: what it was trained on.
        metrics: figures of the training itself.
        measure: called for the start (the base, or the adapter that training started from) and for the result.
        questions: training questions, for the coverage index.
        promote: let the version answer at once.

    Returns:
        The version, and the figures before and after.
    """
    with LoraModel.load(origin.base, device=origin.device) as model:
        model.load_adapter(name, final)
        probe = take_probe(model, name)
        after = dict(measure(model, name))
        if origin.start is not None:
            model.load_adapter("start", origin.start, trust=True)
        before = dict(measure(model, None if origin.start is None else "start"))
    figures = {f"{key}_before": value for key, value in before.items()}
    figures |= {f"{key}_after": value for key, value in after.items()}
    manifest = Manifest(
        name=name,
        method=method,
        trained_at=datetime.now(UTC),
        base=origin.base,
        fingerprints=origin.fingerprints,
        settings=dict(settings),
        data=data,
        metrics={**metrics, **figures},
        probe=probe,
    )

    def write(folder: Path) -> None:
        for file in final.iterdir():
            shutil.copy2(file, folder / file.name)
        CoverageIndex.fit(questions).save(folder / COVERAGE)

    return Registry(out).add(manifest, write, promote=promote), before, after
