"""Settings of one call over those of the component, in the words of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ragft_plugin.types import Filter


class Settings(Protocol):
    """What a routed component is made with; every one can be given at the call as well."""

    @property
    def k(self) -> int | None:
        """Passages per question."""

    @property
    def filter(self) -> dict[str, Any] | None:
        """Access filter."""

    @property
    def cost_weight(self) -> float | None:
        """Reward given up per unit of cost."""

    @property
    def arm(self) -> str | None:
        """The arm to force."""


def request_of(
    component: Settings,
    *,
    k: int | None = None,
    filter: Filter | None = None,
    cost_weight: float | None = None,
    arm: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The keywords for a pipeline's methods: what the call says, else what the component says.

    Args:
        component: a routed chain or retriever.
        k: passages per question; None, here and below, leaves the component's own.
        filter: access filter.
        cost_weight: reward given up per unit of cost.
        arm: the arm to force.
        options: for the generators, over the component's own.
    """
    return {
        "k": component.k if k is None else k,
        "scope": component.filter if filter is None else filter,
        "cost_weight": component.cost_weight if cost_weight is None else cost_weight,
        "arm": arm or component.arm,
        "options": {**getattr(component, "options", {}), **(options or {})},
    }
