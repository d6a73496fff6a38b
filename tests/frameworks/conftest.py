"""The demo's own parts, real arms and no stubs, and a router fitted on what suits each kind of the demo's questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")
pytest.importorskip("langchain_core")
pytest.importorskip("llama_index.core")

from ragft_plugin.assembly import Project
from ragft_plugin.config import Config
from ragft_plugin.config import Generation as Settings
from ragft_plugin.demo.job import score
from ragft_plugin.demo.pocket import ADAPTERS, BASE
from ragft_plugin.demo.questions import documents, questions
from ragft_plugin.evaluation.outcome_table import Outcomes
from ragft_plugin.pipeline import Pipeline
from ragft_plugin.routing import Router
from ragft_plugin.trial import LabelledQuestion, run_arms
from ragft_plugin.types import Generation, Prompt

CALIBRATION = 84  # twelve of each kind
SUITED = {
    "adapter only": ("adapter:facts", "rag+adapter:facts"),
    "documents only": ("rag", "rag+adapter:facts"),
    "changed": ("rag",),
    "both": ("adapter:facts", "rag"),
    "unknown": ("base",),
    "plain ticket": ("adapter:tickets", "rag+adapter:tickets"),
    "lookup ticket": ("rag+adapter:tickets",),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where langchain-community is installed, LlamaIndex imports it, and it warns that it is being sunset."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(
                pytest.mark.filterwarnings("ignore:.langchain-community. is being sunset:DeprecationWarning")
            )


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The demo's project, without running the demo."""
    config = Config(
        base=str(BASE),
        knowledge_base="knowledge_base",
        encoder="hashing",
        adapters={name: str(folder) for name, folder in ADAPTERS.items()},
        generation=Settings(max_new_tokens=12),
    )
    config = config.model_copy(update={"folder": tmp_path_factory.mktemp("project")})
    with Project(config) as opened:
        opened.knowledge_base(create=True).add(documents())
        yield opened


@pytest.fixture(scope="session")
def arms(project: Project) -> list[Any]:
    """base, rag, and both with each adapter."""
    return project.arms()


class Named:
    """Answers with a name: so an arm is right where its name is an accepted answer, whatever the weights would say."""

    def __init__(self, name: str) -> None:
        self.name = name

    def generate(self, prompts: Sequence[Prompt], **options: Any) -> list[Generation]:
        return [Generation(self.name) for _ in prompts]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        yield self.name


@pytest.fixture(scope="session")
def router(arms: list[Any]) -> Router:
    """Fitted, gate open, so that questions go different ways."""
    asked = [LabelledQuestion(q.query, SUITED[q.kind], q.id, q.kind) for q in questions("calibration")[:CALIBRATION]]
    trial = run_arms([replace(arm, generator=Named(arm.name)) for arm in arms], asked, score, k=3)
    return Router().fit(Outcomes.from_rows(trial.outcomes), gate=False)


@pytest.fixture(scope="session")
def pipeline(arms: list[Any], router: Router) -> Pipeline:
    """Real arms behind the fitted router."""
    return Pipeline(arms, router, k=3, retrieval_cost=1.0)


@pytest.fixture(scope="session")
def model(project: Project) -> Any:
    """The pocket model with its adapters, behind its one worker."""
    return project.model()
