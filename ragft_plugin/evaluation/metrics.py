"""Metrics: every measure of an answer, a ranking, a confidence and a difference, in one namespace."""

from __future__ import annotations

from ragft_plugin.evaluation.answers import (
    SCORERS,
    Scorer,
    contains,
    exact_match,
    load_scorer,
    normalize_answer,
    rouge_l,
    token_f1,
)
from ragft_plugin.evaluation.calibration import (
    CalibrationTest,
    ReliabilityBin,
    brier,
    calibration_test,
    ece,
    reliability,
    spiegelhalter,
)
from ragft_plugin.evaluation.intervals import (
    Interval,
    bootstrap_mean,
    bootstrap_means,
    mcnemar_exact,
    paired_bootstrap,
    wilson,
)
from ragft_plugin.evaluation.ranking import hit, ndcg, recall, reciprocal_rank

__all__ = [
    "SCORERS",
    "CalibrationTest",
    "Interval",
    "ReliabilityBin",
    "Scorer",
    "bootstrap_mean",
    "bootstrap_means",
    "brier",
    "calibration_test",
    "contains",
    "ece",
    "exact_match",
    "hit",
    "load_scorer",
    "mcnemar_exact",
    "ndcg",
    "normalize_answer",
    "paired_bootstrap",
    "recall",
    "reciprocal_rank",
    "reliability",
    "rouge_l",
    "spiegelhalter",
    "token_f1",
    "wilson",
]
