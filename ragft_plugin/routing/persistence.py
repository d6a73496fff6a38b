"""A router on disk and back: ``load(save(x))`` decides as x does, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragft_plugin.errors import RouterError
from ragft_plugin.routing.adapters import AdapterRecord
from ragft_plugin.routing.cold import ColdStart
from ragft_plugin.routing.parts import Parts
from ragft_plugin.routing.restoring import restore_parts
from ragft_plugin.routing.router_files import read_arrays, read_state, write_router
from ragft_plugin.routing.router_state import ColdState, RouterState
from ragft_plugin.routing.signals import SIGNALS
from ragft_plugin.types import Encoder

if TYPE_CHECKING:
    from ragft_plugin.routing.router import Router


def save_router(router: Router, path: str | os.PathLike[str]) -> None:
    """Write a router; the directory appears whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    state: dict[str, Any] = {
        "router_version": router.version,
        "arms": list(router.arms),
        "cost_weight": router.cost_weight,
        "policy": router.policy,
        "exploration": router.exploration,
        "fingerprints": dict(router.fingerprints),
        "adapters": {
            name: {
                "trained_at": record.trained_at,
                "passages": dict(record.passages),
                "questions": list(record.questions),
                "closeness": record.closeness,
            }
            for name, record in router.adapters.items()
        },
    }
    if router.cold_start is not None:
        state["cold"] = _cold_state(router.cold_start)
    else:
        state["fitted"] = _fitted_state(router.fitted(), router.encoder_fingerprint, arrays)
    write_router(path, state, arrays)


def load_router(path: str | os.PathLike[str], encoder: Encoder | None) -> Router:
    """Read a router; see ``Router.load``."""
    from ragft_plugin.routing.router import Router

    place = Path(path)
    state = read_state(place)
    arrays = read_arrays(place, state.arrays_sha256)
    router = Router(
        cost_weight=state.cost_weight,
        policy=state.policy,
        exploration=state.exploration,
        adapters={
            name: AdapterRecord(a.trained_at, a.passages, tuple(a.questions), a.closeness)
            for name, a in state.adapters.items()
        },
    )
    router.version = state.router_version
    router.fingerprints = state.fingerprints
    arms = tuple(state.arms)
    if len(set(arms)) < len(arms):
        raise RouterError(f"{place}: the names of the arms are not distinct")
    if state.cold is not None:
        router.cold_start = _cold(state, state.cold, place)
    elif state.fitted is not None:
        router.parts = restore_parts(arms, state.fitted, arrays, encoder, place)
    else:
        raise RouterError(f"{place}: neither a fitted router nor a cold start")
    return router


def encoder_fingerprint(path: str | os.PathLike[str]) -> str:
    """Fingerprint of the encoder that a router on disk needs; "tfidf" if it needs none.

    Raises:
        RouterError: if there is no router, or it is damaged.
    """
    fitted = read_state(Path(path)).fitted
    return "tfidf" if fitted is None else fitted.encoder


def _cold_state(cold: ColdStart) -> dict[str, Any]:
    return {
        "reads": list(cold.reads),
        "taught": list(cold.taught),
        "texts": [list(each) for each in cold.texts],
        "covered": cold.covered,
        "close": cold.close,
        "facts": list(cold.facts),
    }


def _cold(state: RouterState, cold: ColdState, place: Path) -> ColdStart:
    n = len(state.arms)
    if (
        len(cold.reads) != n
        or len(cold.taught) != n
        or max(cold.taught) >= len(cold.texts)
        or len(cold.facts) not in (0, n)
    ):
        raise RouterError(f"{place}: the cold start does not fit {n} arms")
    texts = tuple(tuple(each) for each in cold.texts)
    return ColdStart.prepare(tuple(state.arms), tuple(cold.reads), tuple(cold.taught), texts, cold.covered, cold.close)


def _fitted_state(parts: Parts, encoder: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Plain data of the parts; their arrays are put in ``arrays``."""
    featurizer, plan = parts.featurizer, parts.plan
    arrays["idf"] = featurizer.tfidf.idf
    for block, axes in featurizer.axes.items():
        arrays[f"axes.{block}"] = axes
    for stage, centre in featurizer.centre.items():
        arrays[f"centre.{stage}"] = centre
    models = []
    for stage, model in zip(featurizer.stages, parts.models, strict=True):
        plain, own = model.state()
        models.append(plain)
        for name, array in own.items():
            arrays[f"model.{stage}.{name}"] = array
    for name in ("weights", "coef", "gain", "lower", "platt", "means"):
        arrays[f"plan.{name}"] = getattr(plan, name)
    arrays["plan.stage_price"] = plan.prices.stage
    arrays["plan.arm_price"] = plan.prices.arm
    arrays["landmarks"] = parts.novelty.landmarks
    arrays["seen"] = parts.seen
    return {
        "stages": list(featurizer.stages),
        "draft_arm": featurizer.draft_arm,
        "agreement_arm": featurizer.agreement_arm,
        "encoder": encoder,
        "terms": list(featurizer.tfidf.vocabulary),
        "unseen": featurizer.tfidf.unseen,
        "names": {stage: list(names) for stage, names in featurizer.names.items()},
        "signals": sorted(name for name, s in SIGNALS.items() if s.stage in featurizer.stages),
        "model": parts.model_name,
        "models": models,
        "gated": plan.gated,
        "novelty_threshold": parts.novelty.threshold,
    }
