"""A router on disk: ``router.json`` and ``arrays.npz`` in a directory with a version. No pickle, no code.

A stranger's router is data to be doubted: names, sizes, shapes and number types are checked before anything is used,
and a member that is not a plain array is refused by numpy itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ragft_plugin.errors import RouterError
from ragft_plugin.routing.adapters import AdapterRecord
from ragft_plugin.routing.cold import ColdStart
from ragft_plugin.routing.costs import Costs
from ragft_plugin.routing.features import BLOCK_STAGE, Featurizer
from ragft_plugin.routing.novelty import Novelty
from ragft_plugin.routing.plan import Plan
from ragft_plugin.routing.rewards import REWARD_MODELS
from ragft_plugin.routing.signals import SIGNALS
from ragft_plugin.routing.stopping import COLUMNS
from ragft_plugin.routing.text import Tfidf
from ragft_plugin.types import STAGES, Encoder, Stage

if TYPE_CHECKING:
    from ragft_plugin.routing.router import Router

FORMAT = "ragft-router"
VERSION = 1
SETTINGS = "router.json"
ARRAYS = "arrays.npz"
MAX_SETTINGS_BYTES = 64 * 1024 * 1024
MAX_ARRAY_BYTES = 1024 * 1024 * 1024

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class _Adapter(_Strict):
    trained_at: Finite | str | None = None
    passages: dict[str, str] = Field(default_factory=dict)
    questions: list[str] = Field(default_factory=list)


class _Cold(_Strict):
    reads: list[bool]
    taught: list[int]
    texts: list[list[str]]
    covered: Finite
    close: Finite


class _Fitted(_Strict):
    stages: Annotated[list[Stage], Field(min_length=1, max_length=len(STAGES))]
    draft_arm: Name | None
    agreement_arm: Name | None
    encoder: str
    terms: list[str]
    names: dict[Stage, list[str]]
    signals: list[str]
    model: str
    models: list[dict[str, Any]]
    gated: bool
    novelty_threshold: Finite


class _Settings(_Strict):
    format: Literal["ragft-router"]
    version: int
    router_version: str
    arms: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    cost_weight: Annotated[Finite, Field(ge=0.0)]
    policy: str
    exploration: Annotated[Finite, Field(ge=0.0)]
    fingerprints: dict[str, str]
    adapters: dict[str, _Adapter]
    cold: _Cold | None = None
    fitted: _Fitted | None = None
    arrays_sha256: str


def save_router(router: Router, path: str | os.PathLike[str]) -> None:
    """Write a router; the directory appears whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    settings: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
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
            }
            for name, record in router.adapters.items()
        },
    }
    if router._cold is not None:
        cold = router._cold
        settings["cold"] = {
            "reads": list(cold.reads),
            "taught": list(cold.taught),
            "texts": [list(each) for each in cold.texts],
            "covered": cold.covered,
            "close": cold.close,
        }
    else:
        settings["fitted"] = _fitted_state(router, arrays)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    data = packed.getvalue()
    settings["arrays_sha256"] = hashlib.sha256(data).hexdigest()
    _Settings.model_validate(settings)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write(beside / ARRAYS, data)
        _write(beside / SETTINGS, json.dumps(settings, ensure_ascii=False).encode())
        _swap(beside, target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def load_router(path: str | os.PathLike[str], encoder: Encoder | None) -> Router:
    """Read a router; see ``Router.load``."""
    from ragft_plugin.routing.router import Router

    place = Path(path)
    settings = _read_settings(place)
    arrays = _read_arrays(place / ARRAYS, settings.arrays_sha256)
    router = Router(
        cost_weight=settings.cost_weight,
        policy=settings.policy,
        exploration=settings.exploration,
        adapters={
            name: AdapterRecord(a.trained_at, a.passages, tuple(a.questions)) for name, a in settings.adapters.items()
        },
    )
    router._arms = tuple(settings.arms)
    router.version = settings.router_version
    router.fingerprints = settings.fingerprints
    if len(set(router._arms)) < len(router._arms):
        raise RouterError(f"{place}: the names of the arms are not distinct")
    if settings.cold is not None:
        cold = settings.cold
        n = len(router._arms)
        if len(cold.reads) != n or len(cold.taught) != n or max(cold.taught) >= len(cold.texts):
            raise RouterError(f"{place}: the cold start does not fit {n} arms")
        router._cold = ColdStart.prepare(
            router._arms,
            tuple(cold.reads),
            tuple(cold.taught),
            tuple(tuple(each) for each in cold.texts),
            cold.covered,
            cold.close,
        )
        router._seen = np.ones(n, dtype=bool)
    elif settings.fitted is not None:
        _restore(router, settings.fitted, arrays, encoder, place)
    else:
        raise RouterError(f"{place}: neither a fitted router nor a cold start")
    return router


def _fitted_state(router: Router, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    featurizer, plan = router._fitted()
    assert router._novelty is not None
    arrays["idf"] = featurizer.tfidf.idf
    for block, axes in featurizer.axes.items():
        arrays[f"axes.{block}"] = axes
    for stage, centre in featurizer.centre.items():
        arrays[f"centre.{stage}"] = centre
    models = []
    for stage, model in zip(featurizer.stages, router._models, strict=True):
        plain, own = model.state()
        models.append(plain)
        for name, array in own.items():
            arrays[f"model.{stage}.{name}"] = array
    for name in ("weights", "coef", "gain", "lower", "platt", "means"):
        arrays[f"plan.{name}"] = getattr(plan, name)
    arrays["plan.stage_price"] = plan.prices.stage
    arrays["plan.arm_price"] = plan.prices.arm
    arrays["landmarks"] = router._novelty.landmarks
    arrays["seen"] = router._seen
    return {
        "stages": list(featurizer.stages),
        "draft_arm": featurizer.draft_arm,
        "agreement_arm": featurizer.agreement_arm,
        "encoder": router.encoder_fingerprint,
        "terms": list(featurizer.tfidf.vocabulary),
        "names": {stage: list(names) for stage, names in featurizer.names.items()},
        "signals": sorted(name for name, s in SIGNALS.items() if s.stage in featurizer.stages),
        "model": router._model_name,
        "models": models,
        "gated": plan.gated,
        "novelty_threshold": router._novelty.threshold,
    }


def _restore(
    router: Router, fitted: _Fitted, arrays: Mapping[str, np.ndarray], encoder: Encoder | None, place: Path
) -> None:
    a = len(router._arms)
    stages = tuple(fitted.stages)
    if fitted.encoder != "tfidf" and (encoder is None or encoder.fingerprint != fitted.encoder):
        got = "none was given" if encoder is None else f"{encoder.fingerprint!r} was given"
        raise RouterError(f"{place}: fitted with encoder {fitted.encoder!r}, but {got}; pass encoder=")
    missing = [s for s in fitted.signals if s not in SIGNALS]
    if missing:
        raise RouterError(f"{place}: fitted with signals that are not registered here: {', '.join(missing)}")
    if fitted.model not in REWARD_MODELS or len(fitted.models) != len(stages):
        raise RouterError(f"{place}: unknown reward model {fitted.model!r}, or not one per stage")
    if stages != tuple(s for s in STAGES if s in stages) or stages[0] != "question" or set(fitted.names) != set(stages):
        raise RouterError(f"{place}: stages are {stages}, expected some of {STAGES} in order from 'question'")
    for arm in (fitted.draft_arm, fitted.agreement_arm):
        if arm is not None and arm not in router._arms:
            raise RouterError(f"{place}: unknown arm {arm!r}")

    def array(name: str, *shape: int | None) -> np.ndarray:
        found = arrays.get(name)
        if found is None:
            raise RouterError(f"{place}: the array {name!r} is missing")
        fits = len(found.shape) == len(shape) and all(
            want is None or want == got for want, got in zip(shape, found.shape, strict=True)
        )
        if not fits or not np.isfinite(found).all():
            raise RouterError(f"{place}: the array {name!r} has shape {found.shape} or numbers not finite")
        return found

    v = len(fitted.terms)
    names = {s: tuple(fitted.names[s]) for s in stages}
    featurizer = Featurizer(
        stages,
        fitted.draft_arm,
        fitted.agreement_arm,
        encoder if fitted.encoder != "tfidf" else None,
        Tfidf({t: i for i, t in enumerate(fitted.terms)}, array("idf", v)),
        {
            b: array(f"axes.{b}", v if fitted.encoder == "tfidf" else None, None)
            for b, s in BLOCK_STAGE.items()
            if s in stages
        },
        names,
        {s: array(f"centre.{s}", 2, len(names[s])) for s in stages},
    )
    models = []
    for stage, plain in zip(stages, fitted.models, strict=True):
        prefix = f"model.{stage}."
        own = {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
        model = REWARD_MODELS[fitted.model]().restore(plain, own)
        probe = model.predict(np.zeros((1, featurizer.width(stage))))
        if probe.shape != (1, a) or not np.isfinite(probe).all():
            raise RouterError(f"{place}: the reward model of stage {stage!r} predicts {probe.shape}, not (1, {a})")
        models.append(model)
    s = len(stages)
    weights = array("plan.weights", None)
    w = len(weights)
    plan = Plan(
        weights,
        array("plan.coef", w, s - 1, COLUMNS),
        array("plan.gain", w),
        array("plan.lower", w),
        array("plan.platt", w, 2),
        array("plan.means", a),
        Costs(array("plan.stage_price", s), array("plan.arm_price", s, a)),
        fitted.gated,
    )
    if w == 0 or (np.diff(weights) <= 0).any():
        raise RouterError(f"{place}: the grid of cost weights is not rising")
    block = featurizer.question_columns
    router._featurizer = featurizer
    router._models = tuple(models)
    router._model_name = fitted.model
    router._plan = plan
    router._novelty = Novelty(array("landmarks", None, block.stop - block.start), fitted.novelty_threshold)
    router._seen = array("seen", a).astype(bool)


def _read_settings(place: Path) -> _Settings:
    file = place / SETTINGS
    try:
        if file.stat().st_size > MAX_SETTINGS_BYTES:
            raise RouterError(f"{file}: larger than {MAX_SETTINGS_BYTES:,} bytes; this is not a router")
        fields = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise RouterError(f"{place}: there is no router here (no {SETTINGS})") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RouterError(f"{file}: cannot be read: {error}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise RouterError(f"{file}: not a router")
    if fields.get("version") != VERSION:
        raise RouterError(f"{file}: version {fields.get('version')!r}, this package reads {VERSION}; fit it anew")
    try:
        return _Settings.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RouterError(f"{file}: {where}: {first['msg']}") from None


def _read_arrays(file: Path, digest: str) -> dict[str, np.ndarray]:
    try:
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise RouterError(f"{file}: damaged, or of another router; its checksum differs")
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            size = sum(m.file_size for m in members.infolist())
        if size > MAX_ARRAY_BYTES:
            raise RouterError(f"{file}: {size:,} bytes of arrays, at most {MAX_ARRAY_BYTES:,} are read")
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RouterError(f"{file}: cannot be read: {error}") from None
    for name, array in arrays.items():
        if array.dtype.kind not in "fbiu":
            raise RouterError(f"{file}: the array {name!r} has type {array.dtype}, expected numbers")
    return arrays


def _write(file: Path, data: bytes) -> None:
    with open(file, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _swap(beside: Path, target: Path) -> None:
    """Put the new directory in the old one's place; a reader finds one or the other."""
    if target.exists():
        if not (target / SETTINGS).exists():
            raise RouterError(f"{target}: there is something else here, not a router; choose another path")
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        os.rename(target, old / "router")
        try:
            os.rename(beside, target)
        except BaseException:
            os.rename(old / "router", target)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(beside, target)
