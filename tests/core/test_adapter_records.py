"""What a project's router knows of its adapters: staleness, closeness, the safe arm; on the demo's adapters."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from stubs import Echo

from ragft_plugin.adapter_records import closeness_fact
from ragft_plugin.assembly import Project
from ragft_plugin.config import Config, parse_arm
from ragft_plugin.demo.pocket import ADAPTERS
from ragft_plugin.demo.questions import TAUGHT_ON, documents, questions
from ragft_plugin.errors import ConfigError
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.routing import Router
from ragft_plugin.routing.adapters import CHANGED_KEYS, changed_at, stale_arms
from ragft_plugin.types import Decision, Passage

sys.path.insert(0, str(Path(__file__).parents[1] / "routing"))
from routing_worlds import world


class EchoProject(Project):
    """A project whose arms cost no model."""

    def generator(self, adapter: str | None) -> Echo:
        return Echo(adapter or "base")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("project")
    with Project(settings(place)) as project:
        project.knowledge_base(create=True).add(documents())
    return place


def settings(place: Path, **more: object) -> Config:
    adapters = {name: str(path) for name, path in ADAPTERS.items()}
    return Config(**{"folder": place, "adapters": adapters, "known_until": {"facts": TAUGHT_ON}, **more})


def decided(config: Config, asked: list[str]) -> list[Decision]:
    with EchoProject(config) as project:
        return [routed.decision for routed in project.pipeline().decide(asked)]


def of_kind(kind: str) -> list[str]:
    return [question.query for question in questions("test") if question.kind == kind][:40]


def test_an_adapter_is_not_asked_alone_where_the_evidence_is_newer_than_what_it_knows(folder: Path) -> None:
    asked = of_kind("changed")
    before, after = decided(settings(folder, known_until={}), asked), decided(settings(folder), asked)
    stale = [any("adapter:facts is stale: passage" in reason for reason in d.reasons) for d in after]
    # The changed papers are found for nearly all of these questions.
    assert np.mean(stale) > 0.9
    assert not any(d.arm == "adapter:facts" for d, old in zip(after, stale, strict=True) if old)
    # It was trained after all papers were written; unless told otherwise it is taken to know them.
    assert not any("stale" in reason for d in before for reason in d.reasons)


def test_a_passage_that_changed_since_training_makes_an_adapter_stale(folder: Path, tmp_path: Path) -> None:
    paper = documents()[0]
    for text, changed in ((paper.text, False), (paper.text + " Not yet.", True)):
        own = tmp_path / str(changed)
        own.mkdir()
        manifest = json.loads((ADAPTERS["facts"] / "manifest.json").read_text())
        manifest["data"]["passages"] = {paper.id: hashlib.sha256(text.encode()).hexdigest()[:32]}
        (own / "manifest.json").write_text(json.dumps(manifest))
        (decision,) = decided(settings(folder, adapters={"facts": str(own)}, known_until={}), [paper.text])
        assert any("has changed since it was trained on" in reason for reason in decision.reasons) is changed


def test_numbers_within_a_training_row_name_no_passage(folder: Path) -> None:
    manifest = json.loads((ADAPTERS["facts"] / "manifest.json").read_text())
    assert set(manifest["data"]["passages"]) == {"1", "2", "3"}
    with EchoProject(settings(folder)) as project:
        assert not project.adapter_records().by_arm(["adapter:facts"])["adapter:facts"].passages


def test_closeness_to_the_training_questions_is_a_fact_and_starts_the_router(folder: Path) -> None:
    taught, written, plain = of_kind("adapter only"), of_kind("documents only"), of_kind("plain ticket")
    with EchoProject(settings(folder)) as project:
        facts = project.adapter_records().facts([*taught, *plain])
        own = [fact[closeness_fact("tickets")] for fact in facts]
        assert min(own[len(taught) :]) > max(own[: len(taught)])
        routed = project.pipeline().decide(taught[:3])
        assert all(item.evidence.facts.keys() == {"close_facts", "close_tickets"} for item in routed)
    alone = {
        kind: np.mean([d.arm == arm for d in decided(settings(folder), asked)])
        for kind, asked, arm in (
            ("taught", taught, "adapter:facts"),
            ("written", written, "adapter:facts"),
            ("plain", plain, "adapter:tickets"),
        )
    }
    # Before any outcome an adapter answers alone what it was trained for, and seldom what only the documents say.
    assert alone["taught"] > max(0.25, 2.0 * alone["written"])
    assert alone["plain"] > 0.9
    reasons = decided(settings(folder), taught[:1])[0].reasons
    assert any("closeness to what adapter:facts was trained on is" in reason for reason in reasons)
    assert any(reason.startswith("passages cover ") for reason in reasons)


def test_a_question_like_nothing_known_goes_to_the_arm_that_shows_what_it_found(folder: Path) -> None:
    for decision in decided(settings(folder), ["How do I bake bread?", "Was ist das?"]):
        assert parse_arm(decision.arm).retrieves
        assert parse_arm(decision.arm).adapter is None
        assert decision.confidence <= 0.5


def test_a_fitted_router_of_a_project_knows_its_adapters_and_the_unfamiliar(tmp_path: Path, folder: Path) -> None:
    rows = []
    for row in world(300, passages=True).rows:
        fields = row.model_dump(exclude_none=True)
        for key in ("reward", "cost"):
            fields[key] = {"adapter:facts": fields[key]["adapter"], "rag": fields[key]["rag"]}
        rows.append(fields)
    Router().fit(Outcomes.from_rows(rows)).save(tmp_path / "router")
    config = settings(folder, router=str(tmp_path / "router"), arms=["adapter:facts", "rag"])
    with EchoProject(config) as project:
        router = project.router()
        assert router.adapters["adapter:facts"].trained_at == TAUGHT_ON
        (strange,) = router.decide([project_evidence(project, "Qu'est-ce qui se passe dehors?")])
        assert strange.arm == router.arms[router.gate().safe]
        assert "unlike all queries" in strange.reasons[-1]
        new = Passage("n", "The falcon record.", metadata={"updated": "2026-06-15"})
        (stale,) = router.decide([project_evidence(project, "What is the falcon number 7 about?", new)])
        assert stale.arm == "rag"
        assert "adapter:facts is stale: passage 'n' is newer than its training" in stale.reasons


def test_a_router_fitted_behind_another_adapter_or_encoder_is_demoted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EchoProject(settings(folder)) as project:
        now = project.fingerprints()
    assert now.keys() == {"adapter:facts", "adapter:tickets", "knowledge_base"}
    place = tmp_path / "router"
    Router().fit(world(60), fingerprints=now).save(place)
    with EchoProject(settings(folder, router=str(place))) as project:
        assert project.router().demoted is None
    for name in now:
        Router().fit(world(60), fingerprints=now | {name: "other"}).save(place)
        with EchoProject(settings(folder, router=str(place))) as project:
            assert f"{name} is" in (project.router().demoted or "")
    assert "demoted to its safe arm" in caplog.text


def project_evidence(project: Project, query: str, *passages: Passage):
    from ragft_plugin.types import Evidence

    return Evidence(query, passages=passages, facts=project.adapter_records().facts([query])[0])


def test_settings_of_the_project_reach_its_router(folder: Path) -> None:
    with EchoProject(settings(folder, exploration=0.25, cost_weight=0.5)) as project:
        router = project.router()
        assert (router.policy, router.exploration, router.cost_weight) == ("epsilon_greedy", 0.25, 0.5)
    with pytest.raises(ValueError, match="known_until names 'fact'; adapters: has facts, tickets"):
        settings(folder, known_until={"fact": TAUGHT_ON})
    assert issubclass(ConfigError, ValueError)


def test_an_adapter_without_a_manifest_is_unknown_not_an_error(folder: Path, tmp_path: Path) -> None:
    with EchoProject(settings(folder, adapters={"own": str(tmp_path)}, known_until={})) as project:
        assert project.adapter_records().by_arm(["adapter:own", "rag"]) == {}
        assert project.pipeline().facts is None


def test_a_damaged_manifest_is_told_and_the_rest_goes_on(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with EchoProject(settings(folder, adapters={"own": str(tmp_path)}, known_until={})) as project:
        assert project.adapter_records().by_arm(["adapter:own"]) == {}
    assert "adapter own: nothing is known of its training" in caplog.text


@pytest.mark.parametrize("key", CHANGED_KEYS)
def test_every_spelling_of_the_time_of_change_is_read(key: str) -> None:
    assert changed_at(Passage("1", "text", metadata={key: "1970-01-02T00:00:00Z"})) == 86400.0
    assert changed_at(Passage("1", "text", metadata={key: "some day", "date": 5})) in (
        5.0,
        None if key == "date" else 5.0,
    )


def test_someone_has_to_answer() -> None:
    from ragft_plugin.routing import AdapterRecord

    new = [Passage("1", "text", metadata={"updated": "2026-01-01"})]
    record = AdapterRecord("2025-01-01")
    assert stale_arms({"adapter": record}, ["adapter", "rag"], new).keys() == {0}
    assert stale_arms({"adapter": record, "other": record}, ["adapter", "other"], new) == {}
