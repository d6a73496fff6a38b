"""Parts of a router made of what was read from disk; every shape is checked against every other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ragft_plugin.errors import RouterError
from ragft_plugin.routing.costs import Costs
from ragft_plugin.routing.features import BLOCK_STAGE, Featurizer
from ragft_plugin.routing.novelty import Novelty
from ragft_plugin.routing.parts import Parts
from ragft_plugin.routing.plan import Plan
from ragft_plugin.routing.rewards import REWARD_MODELS, RewardModel
from ragft_plugin.routing.router_state import FittedState
from ragft_plugin.routing.signals import SIGNALS
from ragft_plugin.routing.stopping import COLUMNS
from ragft_plugin.routing.text import Tfidf
from ragft_plugin.types import STAGES, Encoder, Stage


class _Arrays:
    """Arrays by name, handed out only if their shape is the one expected."""

    def __init__(self, arrays: Mapping[str, np.ndarray], place: Path) -> None:
        self.arrays = arrays
        self.place = place

    def __call__(self, name: str, *shape: int | None) -> np.ndarray:
        """The array of a name; None in ``shape`` stands for any length."""
        found = self.arrays.get(name)
        if found is None:
            raise RouterError(f"{self.place}: the array {name!r} is missing")
        fits = len(found.shape) == len(shape) and all(
            want is None or want == got for want, got in zip(shape, found.shape, strict=True)
        )
        if not fits or not np.isfinite(found).all():
            raise RouterError(f"{self.place}: the array {name!r} has shape {found.shape} or numbers not finite")
        return found

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with a prefix, without it."""
        return {name.removeprefix(prefix): x for name, x in self.arrays.items() if name.startswith(prefix)}


def restore_parts(
    arms: tuple[str, ...],
    state: FittedState,
    arrays: Mapping[str, np.ndarray],
    encoder: Encoder | None,
    place: Path,
) -> Parts:
    """The parts that ``state`` and ``arrays`` describe.

    Args:
        arms: names.
        state: of ``router.json``.
        arrays: of ``arrays.npz``.
        encoder: needed if the router was fitted with one.
        place: for errors.

    Raises:
        RouterError: if anything is missing or does not fit the rest.
    """
    _check(arms, state, encoder, place)
    array = _Arrays(arrays, place)
    featurizer = _featurizer(state, array, encoder)
    block = featurizer.question_columns
    return Parts(
        arms,
        featurizer,
        tuple(_models(state, array, featurizer, len(arms))),
        _plan(state, array, len(arms)),
        Novelty(array("landmarks", None, block.stop - block.start), state.novelty_threshold),
        array("seen", len(arms)).astype(bool),
        state.model,
    )


def _check(arms: tuple[str, ...], state: FittedState, encoder: Encoder | None, place: Path) -> None:
    if state.encoder != "tfidf" and (encoder is None or encoder.fingerprint != state.encoder):
        got = "none was given" if encoder is None else f"{encoder.fingerprint!r} was given"
        raise RouterError(f"{place}: fitted with encoder {state.encoder!r}, but {got}; pass encoder=")
    missing = [s for s in state.signals if s not in SIGNALS]
    if missing:
        raise RouterError(f"{place}: fitted with signals that are not registered here: {', '.join(missing)}")
    if state.model not in REWARD_MODELS or len(state.models) != len(state.stages):
        raise RouterError(f"{place}: unknown reward model {state.model!r}, or not one per stage")
    stages = tuple(state.stages)
    if stages != tuple(s for s in STAGES if s in stages) or stages[0] != "question" or set(state.names) != set(stages):
        raise RouterError(f"{place}: stages are {stages}, expected some of {STAGES} in order from 'question'")
    for arm in (state.draft_arm, state.agreement_arm):
        if arm is not None and arm not in arms:
            raise RouterError(f"{place}: unknown arm {arm!r}")


def _featurizer(state: FittedState, array: _Arrays, encoder: Encoder | None) -> Featurizer:
    stages: tuple[Stage, ...] = tuple(state.stages)
    v = len(state.terms)
    own = state.encoder == "tfidf"
    names = {s: tuple(state.names[s]) for s in stages}
    return Featurizer(
        stages,
        state.draft_arm,
        state.agreement_arm,
        None if own else encoder,
        Tfidf({t: i for i, t in enumerate(state.terms)}, array("idf", v), state.unseen),
        {b: array(f"axes.{b}", v if own else None, None) for b, s in BLOCK_STAGE.items() if s in stages},
        names,
        {s: array(f"centre.{s}", 2, len(names[s])) for s in stages},
    )


def _models(state: FittedState, array: _Arrays, featurizer: Featurizer, a: int) -> list[RewardModel]:
    models = []
    for stage, plain in zip(featurizer.stages, state.models, strict=True):
        model = REWARD_MODELS[state.model]().restore(plain, array.under(f"model.{stage}."))
        probe = model.predict(np.zeros((1, featurizer.width(stage))))
        if probe.shape != (1, a) or not np.isfinite(probe).all():
            raise RouterError(
                f"{array.place}: the reward model of stage {stage!r} predicts {probe.shape}, not (1, {a})"
            )
        models.append(model)
    return models


def _plan(state: FittedState, array: _Arrays, a: int) -> Plan:
    s = len(state.stages)
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
        state.gated,
    )
    if w == 0 or (np.diff(weights) <= 0).any():
        raise RouterError(f"{array.place}: the grid of cost weights is not rising")
    return plan
