"""The schema of ``router.json``: what a router on disk may say, checked before anything of it is used."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ragft_plugin.types import STAGES, Stage

Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    """A model that refuses keys it does not know and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class AdapterState(Strict):
    """An ``AdapterRecord``."""

    trained_at: Finite | str | None = None
    passages: dict[str, str] = Field(default_factory=dict)
    questions: list[str] = Field(default_factory=list)
    closeness: str | None = None


class ColdState(Strict):
    """A ``ColdStart``."""

    reads: list[bool]
    taught: list[int]
    texts: list[list[str]]
    covered: Finite
    close: Finite
    facts: list[str | None] = Field(default_factory=list)


class FittedState(Strict):
    """``Parts``, without their arrays."""

    stages: Annotated[list[Stage], Field(min_length=1, max_length=len(STAGES))]
    draft_arm: Name | None
    agreement_arm: Name | None
    encoder: str
    terms: list[str]
    unseen: Annotated[Finite, Field(ge=0.0)] = 0.0
    names: dict[Stage, list[str]]
    signals: list[str]
    model: str
    models: list[dict[str, Any]]
    gated: bool
    novelty_threshold: Finite


class RouterState(Strict):
    """The whole of ``router.json``."""

    format: Literal["ragft-router"]
    version: int
    router_version: str
    arms: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    cost_weight: Annotated[Finite, Field(ge=0.0)]
    policy: str
    exploration: Annotated[Finite, Field(ge=0.0)]
    fingerprints: dict[str, str]
    adapters: dict[str, AdapterState]
    cold: ColdState | None = None
    fitted: FittedState | None = None
    arrays_sha256: str
