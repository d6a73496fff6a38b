"""A log aligned with a policy: checked arrays, importance weights, and the terms whose mean is an estimate.

Shapes: n queries, a arms. The public estimators, with formulas and sources, stand in ``ope``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragft_plugin.errors import DataError
from ragft_plugin.types import FloatArray

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Log:
    """A checked log, aligned with a policy: the arguments of every estimator.

    Attributes:
        reward: observed reward, shape (n,).
        arm: index of the logged arm, shape (n,).
        propensity: probability with which it was logged, shape (n,), in (0, 1].
        dist: probabilities of the policy under evaluation, shape (n, a), rows sum to 1.
        predicted: reward model, shape (n, a), fitted on other rows; None if there is none.
        supported: whether the log could have chosen an arm, shape (n, a).
    """

    reward: FloatArray
    arm: NDArray[np.intp]
    propensity: FloatArray
    dist: FloatArray
    predicted: FloatArray | None
    supported: BoolArray

    @property
    def weight(self) -> FloatArray:
        """Importance weights pi(a_i | x_i) / p_i, shape (n,)."""
        return self._at_arm(self.dist) / self.propensity

    @property
    def model(self) -> FloatArray:
        """The reward model, which must be there."""
        if self.predicted is None:
            raise DataError("direct_method and doubly_robust need predicted rewards, shape (n, a); or use snips")
        return self.predicted

    def ips(self) -> FloatArray:
        """Terms w_i r_i."""
        return self.weight * self.reward

    def snips(self) -> FloatArray:
        """Terms about the ratio V = sum w r / sum w: how far V moves when row i is left out, times n.

        The plain linearisation w_i (r_i - V) / mean(w) makes intervals too short where few rows carry the weight.
        """
        w = self.weight
        total = float(w.sum())
        if total == 0.0:
            raise DataError("the policy never chooses an arm that was logged, so nothing can be said of it")
        value = float(np.dot(w, self.reward)) / total
        others = total - w
        moved = len(w) * w * (self.reward - value) / np.where(others > 1e-12 * total, others, total)
        return np.asarray(value + moved - moved.mean(), dtype=np.float64)

    def direct_method(self) -> FloatArray:
        """Terms sum_a pi(a | x_i) q(x_i, a)."""
        return np.asarray((self.dist * self.model).sum(axis=1), dtype=np.float64)

    def doubly_robust(self) -> FloatArray:
        """Terms of the direct method plus w_i (r_i - q(x_i, a_i))."""
        return self.direct_method() + self.weight * (self.reward - self._at_arm(self.model))

    def unsupported_mass(self) -> float:
        """Mean probability on arms that could not have been logged."""
        return float((self.dist * ~self.supported).sum(axis=1).mean())

    def _at_arm(self, table: FloatArray) -> FloatArray:
        return np.asarray(table[np.arange(len(self.arm)), self.arm], dtype=np.float64)


def check_log(
    reward: ArrayLike,
    arm: ArrayLike,
    propensity: ArrayLike,
    dist: ArrayLike,
    predicted: ArrayLike | None = None,
    *,
    logged_dist: ArrayLike | None = None,
    forced: ArrayLike | None = None,
) -> Log:
    """Check shapes and values, leave forced rows out; arguments as in ``ips`` and ``direct_method``."""
    pi = _table("dist", dist, None)
    n, a = pi.shape
    keep = np.ones(n, bool) if forced is None else ~np.asarray(forced, dtype=bool)
    if keep.shape != (n,):
        raise DataError(f"forced must have shape ({n},) as dist has {n} rows, got {keep.shape}")
    if not keep.any():
        raise DataError("no rows are left; forced ones say nothing about a policy")
    model = None if predicted is None else _table("predicted", predicted, (n, a))[keep]
    r, p = _column("reward", reward, keep), _column("propensity", propensity, keep)
    index = np.asarray(arm)
    if index.shape != (n,) or not np.issubdtype(index.dtype, np.integer):
        raise DataError(f"arm must be integers of shape ({n},), got {index.dtype} of shape {index.shape}")
    index, pi = index[keep].astype(np.intp), pi[keep]
    _refuse(~np.isfinite(r), keep, "reward must be a number", r)
    _refuse(
        ~((p > 0.0) & (p <= 1.0)),
        keep,
        "propensity must be in (0, 1]",
        p,
        "Was the log written by a greedy policy? Log with epsilon_greedy.",
    )
    _refuse((index < 0) | (index >= a), keep, f"arm must be in 0..{a - 1}", index)
    off = (np.abs(pi.sum(axis=1) - 1.0) > 1e-6) | (pi < 0.0).any(axis=1) | ~np.isfinite(pi).all(axis=1)
    _refuse(off, keep, "rows of dist must be probabilities that sum to 1", pi.sum(axis=1))
    supported = np.ones(pi.shape, bool)
    supported[p >= 1.0 - 1e-9] = False
    if logged_dist is not None:
        logged = _table("logged_dist", logged_dist, (n, a))[keep]
        known = ~np.isnan(logged).any(axis=1)
        supported[known] = logged[known] > 0.0
    supported[np.arange(len(index)), index] = True
    return Log(r, index, p, pi, model, supported)


def _table(name: str, values: ArrayLike, shape: tuple[int, int] | None) -> FloatArray:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or (shape is not None and table.shape != shape):
        raise DataError(f"{name} must have shape {shape or '(n, a)'}, got {table.shape}")
    if name == "predicted" and not np.isfinite(table).all():
        raise DataError("predicted has values that are no numbers; every arm of every row needs a prediction")
    return table


def _column(name: str, values: ArrayLike, keep: BoolArray) -> FloatArray:
    column = np.asarray(values, dtype=np.float64)
    if column.shape != keep.shape:
        raise DataError(f"{name} must have shape {keep.shape} as dist has {len(keep)} rows, got {column.shape}")
    return column[keep]


def _refuse(
    wrong: BoolArray, keep: BoolArray, rule: str, values: NDArray[np.float64] | NDArray[np.intp], cure: str = ""
) -> None:
    if wrong.any():
        at = int(np.argmax(wrong))
        row = int(np.flatnonzero(keep)[at])
        raise DataError(f"{rule}; row {row} has {values[at]}. {cure}".rstrip())
