"""Topics, advice, suggestions and the page: exact on logs whose truth is known."""

import json
from html.parser import HTMLParser

import pytest

from ragft_plugin.cli.main import run
from ragft_plugin.evaluation.outcomes import Outcomes, write_outcomes
from ragft_plugin.evaluation.report import build_report
from ragft_plugin.lora.data import read_rows
from ragft_plugin.reporting import advise, compare, find_topics, group_topics, report_router, suggest_rows
from ragft_plugin.reporting.advice import worth_tuning
from ragft_plugin.routing import Router
from ragft_plugin.routing.adapters import AdapterRecord

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
BILLS = ("Which invoice shows the unpaid amount of order {}?", "Where is the invoice amount of order {} printed?")
TRIPS = ("When does the morning train to town {} depart?", "How late is the evening train to town {}?")


def log(n=60, **changes):
    """Bills are known to retrieval alone, trips to the adapter alone; the base knows nothing."""
    rows = []
    for i in range(n):
        bills = i % 3 != 0
        row = {
            "query_id": str(i),
            "query": (BILLS if bills else TRIPS)[i % 2].format(1000 + i),
            "group": "bills" if bills else "trips",
            "gold": [f"gold {i}"] if i % 2 else None,
            "reward": {"base": 0.0, "rag": float(bills), "adapter:trips": float(not bills)},
            "cost": {"base": 0.0, "rag": 1.0, "adapter:trips": 0.0},
            "answers": {"base": "?", "rag": f"said {i}", "adapter:trips": "soon"},
            "passages": [
                {
                    "id": f"p{i}",
                    "text": "a passage",
                    "metadata": {"updated_at": "2026-06-01" if bills else "2020-01-01"},
                }
            ],
        }
        rows.append({**row, **changes})
    return Outcomes.from_rows(rows)


def test_topics_are_the_two_themes_of_the_log():
    outcomes = log()
    for topic in find_topics(outcomes):
        assert len({outcomes.rows[i].group for i in topic.rows}) == 1
    big, small = find_topics(outcomes, count=2)
    assert {outcomes.rows[i].group for i in big.rows} == {"bills"}
    assert {outcomes.rows[i].group for i in small.rows} == {"trips"}
    assert (big.n, small.n, big.share) == (40, 20, pytest.approx(2 / 3))
    assert "invoice" in big.name
    assert "train" in small.name
    assert (big.best_arm, small.best_arm) == ("rag", "adapter:trips")
    # rag is best overall (40 of 60): ahead of itself by nothing, behind the adapter by all on the trips
    assert (big.lead.value, small.lead.value, small.lead.low) == (0.0, 1.0, 1.0)


def test_topics_do_not_depend_on_the_order_of_rows_and_cover_every_row():
    outcomes = log()
    turned = Outcomes.from_rows(outcomes.rows[::-1], outcomes.arms)
    for topics in (find_topics(outcomes), find_topics(turned), find_topics(outcomes, count=5)):
        assert sorted(i for topic in topics for i in topic.rows) == list(range(60))
    assert {t.name for t in find_topics(outcomes)} == {t.name for t in find_topics(turned)}


@pytest.mark.parametrize("texts", [["?"] * 30, ["same words here"] * 30, ["and the of"] * 30])
def test_a_log_without_themes_is_one_topic(texts):
    rows = [{"query_id": str(i), "query": t, "reward": {"a": 1.0, "b": 0.0}} for i, t in enumerate(texts)]
    (only,) = find_topics(Outcomes.from_rows(rows))
    assert (only.n, only.share) == (30, 1.0)


def test_group_topics_are_the_groups_of_the_log():
    assert {topic.name: topic.n for topic in group_topics(log())} == {"bills": 40, "trips": 20}
    assert group_topics(log(group=None)) == ()


def test_only_what_retrieval_alone_answers_is_worth_tuning():
    outcomes = log()
    assert [topic.name for topic in worth_tuning(outcomes, group_topics(outcomes))] == ["bills"]
    no_retrieval = Outcomes.from_rows(
        [{"query_id": str(i), "query": f"q {i}", "reward": {"base": 1.0, "adapter:a": 0.0}} for i in range(20)]
    )
    assert worth_tuning(no_retrieval, find_topics(no_retrieval)) == ()


def test_suggested_rows_take_the_gold_or_else_what_retrieval_answered_right():
    outcomes = log()
    rows = suggest_rows(outcomes, worth_tuning(outcomes, group_topics(outcomes)))
    assert len(rows) == 40
    for row in rows:
        number = int(row["question"].split("order ")[1].split("?")[0].split()[0]) - 1000
        wanted = ("gold", f"gold {number}") if number % 2 else ("rag", f"said {number}")
        assert (row["source"], row["answer"]) == wanted
    wrong = log(gold=None, reward={"base": 0.0, "rag": 0.4, "adapter:trips": 0.0})
    assert suggest_rows(wrong, worth_tuning(wrong, group_topics(wrong))) == []


def test_a_question_in_two_topics_is_suggested_once():
    outcomes = log()
    twice = (*group_topics(outcomes), *find_topics(outcomes))
    rows = suggest_rows(outcomes, twice)
    assert len(rows) == len({row["question"] for row in rows})


def kinds(outcomes, adapters=None, arm=None):
    choice = outcomes.reward.argmax(axis=1) if arm is None else [arm] * len(outcomes)
    report = build_report(outcomes, choice)
    return {(a.kind, a.subject) for a in advise(outcomes, report, group_topics(outcomes), adapters)}


def test_a_stale_adapter_is_named_only_where_it_does_worse_on_newer_evidence():
    old = {"trips": AdapterRecord(trained_at="2025-01-01")}
    assert ("retrain", "trips") in kinds(log(), old)
    assert ("retrain", "trips") not in kinds(log(), {"trips": AdapterRecord(trained_at="2026-12-01")})
    # newer evidence that costs the adapter nothing is no reason to retrain
    same = log(reward={"base": 0.0, "rag": 0.0, "adapter:trips": 1.0})
    assert ("retrain", "trips") not in kinds(same, old)


def test_an_adapter_that_never_adds_anything_is_to_be_dropped():
    assert ("drop", "trips") not in kinds(log())
    assert ("drop", "trips") in kinds(log(reward={"base": 0.0, "rag": 1.0, "adapter:trips": 1.0}))


def test_a_router_without_headroom_or_without_certain_gain_is_told_so():
    assert ("keep", "router") in kinds(log(reward={"base": 0.0, "rag": 1.0, "adapter:trips": 0.5}))
    assert ("collect", "router") in kinds(log(), arm=1)  # always rag: no gain, yet a third of the questions to win


def test_the_comparison_is_exact_and_names_its_measure():
    outcomes = log()
    rows = {row.criterion: row for row in compare(outcomes, adapters={"trips": AdapterRecord("2025-01-01")})}
    assert (rows["arm"].retrieval, rows["arm"].adapter) == ("rag", "adapter:trips")
    assert rows["quality"].retrieval.startswith("0.667")
    assert rows["only this one is right"].retrieval == "66.7%"
    assert rows["only this one is right"].adapter == "33.3%"
    assert rows["cost per answer"].retrieval == "1"
    assert "n = 40" in rows["quality on fresh questions"].measured
    assert rows["quality: trips"].adapter.startswith("1.000")
    assert compare(Outcomes.from_rows([{"query_id": "1", "query": "q", "reward": {"rag": 1, "base": 0}}])) == ()


@pytest.fixture(scope="module")
def page():
    outcomes = log()
    evil = [
        row.model_copy(update={"query": f"{row.query} {EVIL}", "group": EVIL, "answers": {"rag": EVIL}, "gold": [EVIL]})
        for row in outcomes.rows
    ]
    train, test = Outcomes.from_rows(evil[:30], outcomes.arms), Outcomes.from_rows(evil[30:], outcomes.arms)
    return report_router(Router().fit(train), test, title=EVIL).to_html()


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen, self.attributes = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.attributes += [name for name, _ in attributes]


def test_no_text_of_the_log_can_act_in_the_page_and_the_page_loads_nothing(page):
    tags = Tags()
    tags.feed(page)
    assert not {"script", "img", "link", "iframe", "object"} & set(tags.seen)
    assert not [name for name in tags.attributes if name.startswith("on") or name in ("src", "href")]
    assert "default-src 'none'" in page
    assert "url(" not in page


@pytest.fixture
def fitted(tmp_path):
    outcomes = log(90)
    Router().fit(Outcomes.from_rows(outcomes.rows[:45], outcomes.arms)).save(tmp_path / "router")
    write_outcomes(tmp_path / "test.jsonl", outcomes.rows[45:])
    return tmp_path


def test_report_and_suggest_from_the_command_line(fitted, capsys, monkeypatch):
    monkeypatch.chdir(fitted)
    assert run(["report", "test.jsonl", "--router", "router"]) == 0
    out = capsys.readouterr().out
    assert "headroom captured" in out
    assert "tune bills" in out
    assert (fitted / "report.html").read_text().startswith("<!doctype html>")
    assert run(["report", "test.jsonl", "--router", "router", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"]["n"] == 45
    assert {t["best_arm"] for t in told["topics"]} == {"rag", "adapter:trips"}
    assert run(["suggest", "test.jsonl", "--out", "rows.jsonl"]) == 0
    assert len(read_rows(fitted / "rows.jsonl")) == 30  # as `ragft train` reads them


def test_wrong_input_to_report_ends_with_status_2_and_a_cure(fitted, capsys, monkeypatch):
    monkeypatch.chdir(fitted)
    assert run(["report", "test.jsonl"]) == 2
    assert "ragft init" in capsys.readouterr().err
    assert run(["report", "test.jsonl", "--router", "router", "--out", "no/such/folder/r.html"]) == 2
    assert "--out" in capsys.readouterr().err
    (fitted / "one.jsonl").write_text('{"query_id": "1", "query": "q", "reward": {"strange": 1}}\n')
    assert run(["report", "one.jsonl", "--router", "router"]) == 2
    assert "strange" in capsys.readouterr().err


def test_doctor_names_what_is_missing_and_what_does_not_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["doctor", "--json"]) == 0
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)}
    assert checks["torch"]["state"] == "ok"
    assert checks["project"]["state"] == "missing"
    assert run(["init"]) == 0
    capsys.readouterr()
    assert run(["doctor", "--quick"]) == 0
    assert "ragft index" in capsys.readouterr().out
    Router().fit(log()).save(tmp_path / "router")
    assert run(["doctor", "--quick"]) == 2
    assert "adapter:trips" in capsys.readouterr().out
