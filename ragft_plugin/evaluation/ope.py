"""Off-policy estimates: what a policy would have earned on a log that another policy made.

Only the reward of the logged arm is known, so each estimate either reweights it by how often the new policy would
have chosen that arm (IPS, SNIPS), or asks a reward model about the arms not seen (direct method), or both (doubly
robust). None of them can say anything of arms the log never tries: the mass that a policy puts there is reported,
and above 5 % the estimate is refused.

Shapes: n queries, a arms. Intervals are normal, from the variance of one query's term, or bootstrapped. In the world
of the tests the normal ones cover 94 to 95 % at n = 1,000; at n = 200 doubly robust still does, IPS and SNIPS 91 to
93 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from types import MappingProxyType
from typing import Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.intervals import bootstrap_mean, normal_quantile
from ragft_plugin.evaluation.logged import Log, check_log
from ragft_plugin.types import FloatArray

MAX_UNSUPPORTED_MASS = 0.05
IntervalKind = Literal["normal", "bootstrap"]


class Options(TypedDict, total=False):
    """What every estimator takes beside the log.

    Attributes:
        logged_dist: probabilities of the logging policy, shape (n, a), to see which arms it could choose; a row of
            NaN is unknown. Without it only a propensity of 1 tells that the other arms could not be chosen.
        forced: rows whose arm the caller named, shape (n,); they are left out.
        interval: "normal" or "bootstrap".
        level: confidence of the interval, 0.95 unless told.
        seed: of the bootstrap.
    """

    logged_dist: ArrayLike | None
    forced: ArrayLike | None
    interval: IntervalKind
    level: float
    seed: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated value with its interval.

    Attributes:
        value: the estimate, in units of reward.
        low: lower bound.
        high: upper bound.
        n: rows used; forced ones are left out.
        unsupported_mass: mean probability the policy puts on arms that the log could not have chosen.
        effective_sample_size: (sum w)^2 / sum w^2 of the weights w; n if the policies agree.
        method: which estimator.
        level: confidence of the interval.
    """

    value: float
    low: float
    high: float
    n: int
    unsupported_mass: float
    effective_sample_size: float
    method: str
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] ({self.method}, n={self.n:,})"


TERMS: Mapping[str, Callable[[Log], FloatArray]] = MappingProxyType(
    {
        "ips": Log.ips,
        "snips": Log.snips,
        "direct_method": Log.direct_method,
        "doubly_robust": Log.doubly_robust,
    }
)


def ips(
    reward: ArrayLike,
    arm: ArrayLike,
    propensity: ArrayLike,
    dist: ArrayLike,
    **options: Unpack[Options],
) -> Estimate:
    """Inverse propensity score estimate of the value of a policy; unbiased, of high variance.

        V = mean_i w_i r_i,   w_i = pi(a_i | x_i) / p_i

    Args:
        reward: observed reward, shape (n,).
        arm: index of the logged arm, shape (n,).
        propensity: probability with which it was logged, shape (n,), in (0, 1].
        dist: probabilities of the policy under evaluation, shape (n, a), rows sum to 1.
        **options: see ``Options``.

    Raises:
        DataError: for a propensity outside (0, 1], rows of ``dist`` that do not sum to 1, wrong shapes or values,
            or more than 5 % unsupported mass.

    Source: Horvitz & Thompson, JASA 1952; Strehl et al., "Learning from logged implicit exploration data", 2010.
    """
    return _estimate("ips", reward, arm, propensity, dist, None, options)


def snips(
    reward: ArrayLike,
    arm: ArrayLike,
    propensity: ArrayLike,
    dist: ArrayLike,
    **options: Unpack[Options],
) -> Estimate:
    """Self-normalised IPS: a little bias for much less variance, and never outside the range of rewards.

        V = sum_i w_i r_i / sum_i w_i,   w_i = pi(a_i | x_i) / p_i

    Arguments and errors as in ``ips``.

    Source: Swaminathan & Joachims, "The self-normalized estimator for counterfactual learning", NIPS 2015.
    """
    return _estimate("snips", reward, arm, propensity, dist, None, options)


def direct_method(
    reward: ArrayLike,
    arm: ArrayLike,
    propensity: ArrayLike,
    dist: ArrayLike,
    predicted: ArrayLike,
    **options: Unpack[Options],
) -> Estimate:
    """Direct method: the mean of what a reward model predicts. As biased as the model.

        V = mean_i sum_a pi(a | x_i) q(x_i, a)

    The interval covers the choice of the queries only, not the errors of the model. Arguments and errors as in
    ``ips``; ``predicted``: reward model, shape (n, a), fitted on other rows.

    Source: Dudik, Langford & Li, "Doubly robust policy evaluation and learning", ICML 2011, section 2.
    """
    return _estimate("direct_method", reward, arm, propensity, dist, predicted, options)


def doubly_robust(
    reward: ArrayLike,
    arm: ArrayLike,
    propensity: ArrayLike,
    dist: ArrayLike,
    predicted: ArrayLike,
    **options: Unpack[Options],
) -> Estimate:
    """Doubly robust estimate: right if either the propensities or the reward model are.

        V = mean_i [ sum_a pi(a | x_i) q(x_i, a) + w_i (r_i - q(x_i, a_i)) ],   w_i = pi(a_i | x_i) / p_i

    Arguments and errors as in ``ips``; ``predicted``: reward model, shape (n, a), fitted on other rows, or else
    the estimate is too good.

    Source: Dudik, Erhan, Langford & Li, "Doubly robust policy evaluation and optimization", 2014.
    """
    return _estimate("doubly_robust", reward, arm, propensity, dist, predicted, options)


def _estimate(
    method: str,
    reward: ArrayLike,
    arm: ArrayLike,
    propensity: ArrayLike,
    dist: ArrayLike,
    predicted: ArrayLike | None,
    options: Options,
) -> Estimate:
    """Check the log, then estimate."""
    log = check_log(
        reward,
        arm,
        propensity,
        dist,
        predicted,
        logged_dist=options.get("logged_dist"),
        forced=options.get("forced"),
    )
    return estimate(
        log,
        method,
        interval=options.get("interval", "normal"),
        level=options.get("level", 0.95),
        seed=options.get("seed", 0),
    )


def estimate(
    log: Log,
    method: str,
    *,
    baseline: FloatArray | None = None,
    interval: IntervalKind = "normal",
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """The mean of an estimator's terms with its interval, after the check of support.

    Args:
        log: from ``check_log``.
        method: a key of ``TERMS``.
        baseline: terms of another policy on the same rows, shape (n,); then the gain over it is estimated.
        interval: "normal" or "bootstrap".
        level: confidence.
        seed: of the bootstrap.

    Raises:
        DataError: above 5 % unsupported mass, or for an unknown method.
    """
    if method not in TERMS:
        raise DataError(f"unknown estimator {method!r}, expected one of {', '.join(TERMS)}")
    unsupported = log.unsupported_mass()
    if unsupported > MAX_UNSUPPORTED_MASS:
        raise DataError(
            f"{unsupported:.1%} of the policy's choices are arms that the log could not have chosen (at most "
            f"{MAX_UNSUPPORTED_MASS:.0%} are allowed); log with exploration, or run every arm with 'ragft run-arms'"
        )
    terms = TERMS[method](log) - (0.0 if baseline is None else baseline)
    value = float(terms.mean())
    if interval == "bootstrap":
        found = bootstrap_mean(terms, level=level, seed=seed)
        low, high = found.low, found.high
    else:
        # One row has no variance to speak of: its interval is everything.
        spread = float(terms.std(ddof=1)) / sqrt(len(terms)) if len(terms) > 1 else np.inf
        half = normal_quantile(level) * spread
        low, high = value - half, value + half
    w = log.weight
    squares = float(np.dot(w, w))
    effective = float(w.sum()) ** 2 / squares if squares > 0.0 else 0.0
    return Estimate(value, low, high, len(terms), unsupported, effective, method, level)
