"""Evaluation: outcomes, metrics, off-policy estimates, frontier, decision log, drift and report.

Needs numpy and pydantic; the decision log needs SQLAlchemy too. Names are imported when first used, so that
``import ragft_plugin`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ragft_plugin.evaluation.decision_log import DecisionLog
    from ragft_plugin.evaluation.drift import DriftReport, decision_columns, drift_check
    from ragft_plugin.evaluation.frontier import Point
    from ragft_plugin.evaluation.metrics import SCORERS, Interval, load_scorer
    from ragft_plugin.evaluation.ope import Estimate, direct_method, doubly_robust, ips, snips
    from ragft_plugin.evaluation.outcomes import (
        NEVER_FEATURES,
        Outcome,
        Outcomes,
        join_rewards,
        read_outcomes,
        write_outcomes,
    )
    from ragft_plugin.evaluation.policy_value import policy_value
    from ragft_plugin.evaluation.report import Report, build_report
    from ragft_plugin.evaluation.shadow import ShadowComparison, compare_shadow

__all__ = [
    "NEVER_FEATURES",
    "SCORERS",
    "DecisionLog",
    "DriftReport",
    "Estimate",
    "Interval",
    "Outcome",
    "Outcomes",
    "Point",
    "Report",
    "ShadowComparison",
    "build_report",
    "compare_shadow",
    "decision_columns",
    "direct_method",
    "doubly_robust",
    "drift_check",
    "ips",
    "join_rewards",
    "load_scorer",
    "policy_value",
    "read_outcomes",
    "snips",
    "write_outcomes",
]

_MODULES = {
    "decision_log": ("DecisionLog",),
    "drift": ("DriftReport", "decision_columns", "drift_check"),
    "frontier": ("Point",),
    "metrics": ("SCORERS", "Interval", "load_scorer"),
    "ope": ("Estimate", "direct_method", "doubly_robust", "ips", "snips"),
    "outcomes": ("NEVER_FEATURES", "Outcome", "Outcomes", "join_rewards", "read_outcomes", "write_outcomes"),
    "policy_value": ("policy_value",),
    "report": ("Report", "build_report"),
    "shadow": ("ShadowComparison", "compare_shadow"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
