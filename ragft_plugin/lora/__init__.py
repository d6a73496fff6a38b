"""Adapters: one base with many of them, served in mixed batches, trained, checked and kept.

Needs the extra ``lora``. A model behind an OpenAI-compatible server needs only httpx of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ragft_plugin.errors import MissingExtraError

if TYPE_CHECKING:
    from ragft_plugin.lora.checks import DataSummary, check_rows, preview
    from ragft_plugin.lora.continued import ReadingReport, train_on_documents
    from ragft_plugin.lora.coverage import CoverageIndex
    from ragft_plugin.lora.curve import LearningCurve, learning_curve
    from ragft_plugin.lora.data import TrainingRow, hold_out, read_rows
    from ragft_plugin.lora.export import Exported, Merged, export_adapter, merge_adapter
    from ragft_plugin.lora.full_tuning import train_base
    from ragft_plugin.lora.generator import LoraGenerator
    from ragft_plugin.lora.gold_questions import read_gold_questions, write_rows
    from ragft_plugin.lora.manifest import Manifest
    from ragft_plugin.lora.model import LoraModel
    from ragft_plugin.lora.openai import OpenAIGenerator
    from ragft_plugin.lora.policy import PolicyReport
    from ragft_plugin.lora.preference import Preference, train_preference
    from ragft_plugin.lora.question_generation import LLMWriter, Pattern, Patterns, generate_questions
    from ragft_plugin.lora.recipe import Recipe
    from ragft_plugin.lora.registry import AdapterVersion, Registry
    from ragft_plugin.lora.reinforcement import train_with_reward
    from ragft_plugin.lora.rendering import Renderer
    from ragft_plugin.lora.retrieval_aware import GoldQuestion, RetrievalAwareRows, retrieval_aware_rows
    from ragft_plugin.lora.scoring import Comparison
    from ragft_plugin.lora.training import TrainingReport, train_adapter

_EXPORTS = {
    "AdapterVersion": "registry",
    "Comparison": "scoring",
    "CoverageIndex": "coverage",
    "DataSummary": "checks",
    "Exported": "export",
    "GoldQuestion": "retrieval_aware",
    "LLMWriter": "question_generation",
    "LearningCurve": "curve",
    "LoraGenerator": "generator",
    "LoraModel": "model",
    "Manifest": "manifest",
    "Merged": "export",
    "OpenAIGenerator": "openai",
    "Pattern": "question_generation",
    "Patterns": "question_generation",
    "PolicyReport": "policy",
    "Preference": "preference",
    "ReadingReport": "continued",
    "Recipe": "recipe",
    "Registry": "registry",
    "Renderer": "rendering",
    "RetrievalAwareRows": "retrieval_aware",
    "TrainingReport": "training",
    "TrainingRow": "data",
    "check_rows": "checks",
    "export_adapter": "export",
    "generate_questions": "question_generation",
    "hold_out": "data",
    "learning_curve": "curve",
    "merge_adapter": "export",
    "preview": "checks",
    "read_gold_questions": "gold_questions",
    "read_rows": "data",
    "retrieval_aware_rows": "retrieval_aware",
    "train_adapter": "training",
    "train_base": "full_tuning",
    "train_on_documents": "continued",
    "train_preference": "preference",
    "train_with_reward": "reinforcement",
    "write_rows": "gold_questions",
}

__all__ = [
    "AdapterVersion",
    "Comparison",
    "CoverageIndex",
    "DataSummary",
    "Exported",
    "GoldQuestion",
    "LLMWriter",
    "LearningCurve",
    "LoraGenerator",
    "LoraModel",
    "Manifest",
    "Merged",
    "OpenAIGenerator",
    "Pattern",
    "Patterns",
    "PolicyReport",
    "Preference",
    "ReadingReport",
    "Recipe",
    "Registry",
    "Renderer",
    "RetrievalAwareRows",
    "TrainingReport",
    "TrainingRow",
    "check_rows",
    "export_adapter",
    "generate_questions",
    "hold_out",
    "learning_curve",
    "merge_adapter",
    "preview",
    "read_gold_questions",
    "read_rows",
    "retrieval_aware_rows",
    "train_adapter",
    "train_base",
    "train_on_documents",
    "train_preference",
    "train_with_reward",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(f"{__name__}.{_EXPORTS[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("ragft_plugin"):
            raise
        raise MissingExtraError(error.name, "lora") from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
