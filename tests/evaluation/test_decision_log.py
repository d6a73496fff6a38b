"""The decision log: rows survive, ids are unique, rewards come late, processes and threads share it."""

import math
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
import sqlalchemy as sql

from ragft_plugin.errors import DataError, StoreError
from ragft_plugin.evaluation.decision_log import DecisionLog
from ragft_plugin.evaluation.decision_rows import TABLES
from ragft_plugin.types import Answer, Decision, Evidence, Passage

ARMS = {"rag": 0.75, "base": 0.25}


def decided(id, arm="rag", **fields):
    return Decision(id, arm, ARMS, values={"rag": 0.5, "base": 0.25}, confidence=0.7, **fields)


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """URL of a PostgreSQL server: that in RAGFT_TEST_DATABASE, or one started by the package pgserver."""
    url = os.environ.get("RAGFT_TEST_DATABASE")
    if url is not None:
        yield url
        return
    pgserver = pytest.importorskip("pgserver", reason="no RAGFT_TEST_DATABASE, and pgserver is not installed")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgresql"))
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.server)])
def database(request, tmp_path):
    """Where the log is kept; every test that asks for it runs on each, with an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "log.sqlite")
    url = request.getfixturevalue("postgresql")
    engine = sql.create_engine(url)
    TABLES.drop_all(engine)
    engine.dispose()
    return url


@pytest.fixture
def log(database):
    with DecisionLog(database) as opened:
        yield opened


def test_what_was_written_is_read_back(log):
    decision = decided("d1", stage="draft", stage_probability=0.5, fallback="base", router_version="v7", forced=True)
    log.append(decision, query="Who?", cost=2.5, passage_ids=["p1", "p2"], time=100.0)
    (row,) = log.decisions()
    assert (row.id, row.arm, dict(row.propensities), dict(row.predicted)) == ("d1", "rag", ARMS, decision.values)
    assert (row.stage, row.stage_probability, row.fallback, row.forced) == ("draft", 0.5, "base", True)
    assert (row.router_version, row.cost, row.passage_ids, row.time) == ("v7", 2.5, ("p1", "p2"), 100.0)
    assert (row.confidence, row.reward, row.shadow_of, len(log)) == (0.7, None, None, 1)


def test_texts_are_nowhere_in_the_file_unless_asked_for(tmp_path):
    evidence = Evidence("SECRET query", passages=(Passage("p", "SECRET passage"),))
    for texts in (False, True):
        path = tmp_path / f"{texts}.sqlite"
        with DecisionLog(path, texts=texts) as log:
            log.append(decided("d1"), query="SECRET query", cost=1, passage_ids=["p"], evidence=evidence)
        assert (b"SECRET" in b"".join(p.read_bytes() for p in tmp_path.glob(f"{texts}*"))) is texts


def test_equal_queries_have_equal_hashes_and_a_key_changes_them(tmp_path):
    first, second = DecisionLog("sqlite://"), DecisionLog("sqlite://", hash_key=b"pepper")
    assert first.hash("Who?") == first.hash(" who ")
    assert first.hash("Who?") != second.hash("Who?")
    assert first.hash("half a pair \ud800") != first.hash("who")


def test_rewards_come_late_and_the_last_one_counts(log):
    for i in range(3):
        log.append(decided(f"d{i}", arm=["rag", "base", "rag"][i]), query=f"q{i}", cost=i)
    log.attach_rewards({"d1": 0.25})
    log.attach_rewards({"d0": 1.0, "d1": 0.5})
    outcomes = log.outcomes(require_texts=False)
    assert outcomes.arms == ("rag", "base")
    np.testing.assert_array_equal(outcomes.reward, [[1.0, math.nan], [math.nan, 0.5]])
    assert outcomes.propensity.tolist() == [0.75, 0.25]
    assert outcomes.rows[1].cost == {"base": 1.0}
    assert len(outcomes.require_learnable()) == 2


def test_a_fallbacks_reward_belongs_to_the_chosen_arm(log):
    log.append(decided("d0", fallback="base"), query="q", cost=1)
    log.attach_rewards({"d0": 1.0})
    assert log.outcomes(require_texts=False).rows[0].reward == {"rag": 1.0}


def test_with_texts_the_evidence_comes_back_as_an_outcome(database):
    evidence = Evidence(
        "Who?",
        passages=(Passage("p", "t", 1.5, {"when": object, "nan": math.nan, "n": np.float32(0.5)}),),
        drafts={"base": Answer("Ann", "base", logprobs=(-0.5,))},
        spent={"passages": 1.0, "draft": 2.0},
        facts={"length": 3.0},
    )
    with DecisionLog(database, texts=True) as log:
        log.append(decided("d0"), query="Who?", cost=6, evidence=evidence, arm_costs={"rag": 3, "base": 2})
        log.append(decided("d1"), query="What?", cost=6, evidence=evidence)
        log.attach_rewards({"d0": 1.0, "d1": 0.0})
        first, second = log.outcomes().rows
    assert (first.query, first.drafts["base"].logprobs, first.facts) == ("Who?", (-0.5,), {"length": 3.0})
    assert first.passages[0].score == 1.5
    assert first.passages[0].metadata == {"when": "<class 'object'>", "nan": None, "n": 0.5}
    assert (first.cost, first.stage_cost) == ({"rag": 3.0, "base": 2.0}, {"passages": 1.0, "draft": 2.0})
    # Without the arms' prices the cost is that of the whole query, so the stages must not be counted again.
    assert (second.cost, second.stage_cost) == ({"rag": 6.0}, {})


def test_learning_from_hashes_is_refused_and_an_empty_log_names_the_cure(log):
    with pytest.raises(DataError, match="attach_rewards"):
        log.outcomes()
    log.append(decided("d0"), query="Who?", cost=1)
    log.attach_rewards({"d0": 1.0})
    with pytest.raises(DataError, match="texts=True"):
        log.outcomes()


def test_an_id_is_used_once_and_a_failed_batch_leaves_nothing(log):
    log.append(decided("d0"), query="q", cost=1)
    (row,) = log.decisions()
    with pytest.raises(DataError, match="logged before"):
        log.append(decided("d0"), query="q", cost=1)
    other = type(row)(**{**{n: getattr(row, n) for n in type(row).__slots__}, "id": "d1"})
    with pytest.raises(DataError, match="logged before"):
        log.extend([other, row])
    assert len(log) == 1
    log.extend([])


def test_wrong_rewards_are_refused_whole(log):
    log.append(decided("d0"), query="q", cost=1)
    with pytest.raises(DataError, match="unknown decisions, first 'd9'"):
        log.attach_rewards({"d0": 1.0, "d9": 1.0})
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(DataError, match="must be in"):
            log.attach_rewards({"d0": wrong})
    assert next(log.decisions()).reward is None


def test_numbers_that_are_none_are_refused(log):
    with pytest.raises(DataError, match="cost is nan"):
        log.append(decided("d0"), query="q", cost=math.nan)
    with pytest.raises(DataError, match="propensities"):
        log.append(Decision("d1", "rag", {"rag": math.nan}), query="q", cost=1)
    assert len(log) == 0


def test_a_span_of_time_can_be_read_and_old_rows_be_pruned(log):
    for i in range(5):
        log.append(decided(f"d{i}"), query="q", cost=1, time=float(i))
    log.attach_rewards({"d0": 1.0, "d4": 1.0})
    assert [r.id for r in log.decisions(since=1.0, until=3.0)] == ["d1", "d2"]
    assert log.prune(2.0) == 2
    assert [r.id for r in log.decisions()] == ["d2", "d3", "d4"]
    assert len(log.outcomes(require_texts=False)) == 1


def test_shadow_decisions_stand_apart(log):
    log.append(decided("live"), query="q", cost=1)
    log.append(decided("shadow", arm="base"), query="q", cost=1, shadow_of="live")
    assert [r.id for r in log.decisions()] == ["live"]
    assert [(r.id, r.shadow_of) for r in log.decisions(shadow=True)] == [("shadow", "live")]


def test_reading_goes_page_by_page_and_lets_others_write_meanwhile(log, monkeypatch):
    monkeypatch.setattr("ragft_plugin.evaluation.decision_log.BATCH", 3)
    for i in range(7):
        log.append(decided(f"d{i}"), query="q", cost=1)
    reading = log.decisions()
    seen = [next(reading).id for _ in range(2)]
    log.append(decided("d7"), query="q", cost=1)
    assert seen + [r.id for r in reading] == [f"d{i}" for i in range(8)]
    log.attach_rewards({f"d{i}": 1.0 for i in range(8)})
    assert len(log.outcomes(require_texts=False)) == 8


@pytest.mark.parametrize("url", ["database", "sqlite://"])
def test_many_threads_may_write_and_read_at_once(database, url):
    with DecisionLog(database if url == "database" else url) as log:

        def work(thread):
            for i in range(10):
                log.append(decided(f"{thread}-{i}"), query="q", cost=1)
                log.attach_rewards({f"{thread}-{i}": 0.5})
                assert sum(1 for r in log.decisions() if r.reward == 0.5) >= 1

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert len(log) == len(log.outcomes(require_texts=False)) == 80


WRITER = """
import sys
from ragft_plugin.evaluation.decision_log import DecisionLog
from ragft_plugin.evaluation.decision_rows import TABLES
from ragft_plugin.types import Decision
log = DecisionLog(sys.argv[1])
for i in range(100_000):
    log.append(Decision(f"{sys.argv[2]}-{i}", "rag", {"rag": 1.0}), query="q", cost=1.0)
    log.attach_rewards({f"{sys.argv[2]}-{i}": 1.0})
    print(i, flush=True)
"""


def test_a_killed_writer_loses_no_committed_row(database):
    for life in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, database, str(life)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().splitlines() if line]
        writer.wait()
        writer.stdout.close()
        with DecisionLog(database) as log:
            rewarded = {r.id for r in log.decisions() if r.reward == 1.0}
        assert {f"{life}-{i}" for i in told} <= rewarded
    if "://" not in database:
        with closing(sqlite3.connect(database)) as raw:
            assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_several_processes_may_open_and_write_a_new_log_at_once(database):
    code = WRITER.replace("100_000", "15")
    writers = [
        subprocess.Popen([sys.executable, "-c", code, database, str(w)], stdout=subprocess.DEVNULL) for w in range(3)
    ]
    assert [w.wait(60) for w in writers] == [0, 0, 0]
    with DecisionLog(database) as log:
        assert len(log) == 45


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_opens_connections_of_its_own(log):
    log.append(decided("parent"), query="q", cost=1)
    child = multiprocessing.get_context("fork").Process(target=lambda: log.append(decided("child"), query="q", cost=1))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    log.append(decided("parent again"), query="q", cost=1)
    assert [r.id for r in log.decisions()] == ["parent", "child", "parent again"]


def test_a_file_that_is_no_log_or_of_another_version_is_refused(tmp_path):
    (tmp_path / "text.sqlite").write_text("this is not a database, and long enough to be looked at" * 50)
    with pytest.raises(StoreError, match="not a database"):
        DecisionLog(tmp_path / "text.sqlite")
    DecisionLog(tmp_path / "log.sqlite").close()
    with sqlite3.connect(tmp_path / "log.sqlite") as raw:
        raw.execute("UPDATE ragft_meta SET value = '99'")
    raw.close()
    with pytest.raises(StoreError, match="has version 99, expected 1"):
        DecisionLog(tmp_path / "log.sqlite")


def test_errors_do_not_show_the_password():
    with pytest.raises(StoreError) as caught:
        DecisionLog("postgresql+no_such_driver://user:hunter2@nowhere/db")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot be parsed"):
        DecisionLog("::// ::")
