"""The report: its figures, that JSON gives them back, and that no text of a log can act in page or terminal."""

import json
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.charts import ticks
from ragft_plugin.evaluation.frontier import Point, sweep
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.evaluation.report import MISTAKES, Report, build_report
from ragft_plugin.evaluation.report_text import printable

EVIL = '<script>alert(1)</script>\x1b[31m\u202e & "quoted" \'</title></svg>\nnext line'


def outcomes(n=60, evil=False):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        good = rng.random(2) < [0.5, 0.6]
        row = {
            "query_id": str(i),
            "query": f"{EVIL if evil else 'query'} {i}",
            "group": ["a", EVIL if evil else "b", None][i % 3],
            "reward": {EVIL if evil else "base": float(good[0]), "rag": float(good[1])},
            "cost": {EVIL if evil else "base": 1.0, "rag": 3.0},
        }
        rows.append(row)
    return Outcomes.from_rows(rows)


def whole(log, **changes):
    n = len(log)
    arm = np.where(np.arange(n) % 4 == 0, 1 - log.reward.argmax(axis=1), log.reward.argmax(axis=1))
    given = {
        "confidence": np.linspace(0.05, 0.95, n),
        "stage": ["question", "draft"] * (n // 2),
        "cost_weight": 0.05,
        "others": {"kNN": np.zeros(n, dtype=int)},
        "frontier": sweep(log.reward, log.reward, log.cost),
        "notes": ["The gate is open."],
        "title": "Test split",
    }
    return build_report(log, arm, **{**given, **changes})


def test_every_figure_is_the_mean_it_says_it_is():
    log = outcomes()
    arm = np.arange(60) % 2
    cost = np.full(60, 2.5)
    found = build_report(log, arm, cost=cost, cost_weight=0.1)
    rows = np.arange(60)
    assert found.policy("base").reward.value == pytest.approx(log.reward[:, 0].mean())
    assert found.policy("rag").net.value == pytest.approx(log.reward[:, 1].mean() - 0.3)
    assert found.policy("random").reward.value == pytest.approx(log.reward.mean())
    assert found.policy("router").reward.value == pytest.approx(log.reward[rows, arm].mean())
    assert found.policy("router").cost.value == pytest.approx(2.5)
    net = log.reward - 0.1 * log.cost
    assert found.policy("oracle").net.value == pytest.approx(net.max(axis=1).mean())
    base = net.mean(axis=0).max()
    router = (log.reward[rows, arm] - 0.25).mean()
    assert found.gain.value == pytest.approx(router - base)
    assert found.headroom.value == pytest.approx((router - base) / (net.max(axis=1).mean() - base))
    for row in found.policies:
        assert row.reward.low <= row.reward.value <= row.reward.high
    with pytest.raises(KeyError, match="no policy 'kNN'"):
        found.policy("kNN")


def test_the_oracle_captures_all_headroom_and_the_best_arm_none_and_neither_makes_a_mistake_it_could_avoid():
    log = outcomes()
    oracle = build_report(log, (log.reward - 1e-6 * log.cost).argmax(axis=1))
    assert oracle.headroom.value == oracle.headroom.low == oracle.headroom.high == 1.0
    assert oracle.mistakes == ()
    best = log.reward.mean(axis=0).argmax()
    fixed = build_report(log, np.full(60, best))
    assert fixed.headroom.value == fixed.gain.value == fixed.gain.low == fixed.gain.high == 0.0
    assert len(fixed.mistakes) > 0


def test_the_best_arm_of_the_training_rows_may_be_named():
    log = outcomes()
    assert build_report(log, np.zeros(60, int), best_arm="base").best_arm == "base"
    with pytest.raises(DataError, match="best_arm 'rga' is not in the log"):
        build_report(log, np.zeros(60, int), best_arm="rga")


def test_the_worst_mistakes_come_first_and_the_confident_ones_first_among_equals():
    log = outcomes(200)
    found = build_report(log, log.reward.argmin(axis=1), confidence=np.linspace(0, 1, 200), cost_weight=0.01)
    assert len(found.mistakes) == MISTAKES == 20
    assert all(m.chosen != m.best for m in found.mistakes)
    keys = [(-round(m.regret, 9), -m.confidence) for m in found.mistakes]
    assert keys == sorted(keys)


def test_groups_hold_every_query_once():
    found = whole(outcomes())
    assert [(g.group, g.n) for g in found.groups] == [("(none)", 20), ("a", 20), ("b", 20)]
    total = sum(g.n * g.gain.value for g in found.groups) / 60
    assert total == pytest.approx(found.gain.value)
    assert found.stage_share == {"question": 0.5, "draft": 0.5}


def test_repeated_queries_widen_the_interval():
    single = outcomes(40)
    arm = np.arange(40) % 2
    rows = [{**r.model_dump(), "query_id": f"{r.query_id}-{i}"} for r in single.rows for i in range(9)]
    repeated = build_report(Outcomes.from_rows(rows), np.repeat(arm, 9))
    alone = build_report(single, arm)
    width, expected = (r.policy("router").reward.high - r.policy("router").reward.low for r in (repeated, alone))
    assert width == pytest.approx(expected, rel=0.1)


def test_json_gives_the_report_back():
    found = whole(outcomes())
    assert Report.from_json(found.to_json()) == found
    assert Report.from_json(found.to_json(indent=None)) == found
    bare = build_report(outcomes(), np.zeros(60, int))
    assert Report.from_json(bare.to_json()) == bare
    with pytest.raises(DataError, match="not a report"):
        Report.from_json('{"title": 3}')
    with pytest.raises(DataError, match="version 2, expected 1"):
        Report.from_json(json.dumps({**json.loads(bare.to_json()), "version": 2}))


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.attributes = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "rect", "line", "polyline", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "line", "polyline", "circle"):
            assert self.open.pop() == tag


@pytest.mark.parametrize("evil", [False, True])
def test_the_page_is_well_formed_and_a_query_can_put_nothing_into_it(evil):
    log = outcomes(evil=evil)
    title = EVIL if evil else "Test split"
    page = whole(log, title=title, notes=[title], others={title: np.zeros(60, int)}).to_html()
    parsed = Page()
    parsed.feed(page)
    parsed.close()
    assert parsed.open == []
    assert not {"script", "iframe", "img", "link", "object", "a", "foreignobject"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("href", "src", "style")]
    assert ("&lt;script&gt;" in page) is evil
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    for start in (i for i in range(len(page)) if page.startswith("<svg", i)):
        ElementTree.fromstring(page[start : page.index("</svg>", start) + 6])


def test_the_page_shows_policies_frontier_reliability_groups_and_mistakes():
    page = whole(outcomes()).to_html()
    for text in ("always rag", "oracle", "kNN", "Cost against reward", "Reliability diagram", "worst mistakes", "AIQ"):
        assert text in page
    assert "Reliability" not in build_report(outcomes(), np.zeros(60, int)).to_html()


def test_marks_stay_inside_the_chart():
    page = whole(outcomes()).to_html()
    circles = page.split("<circle")[1:]
    assert len(circles) >= 10
    for circle in circles:
        cx, cy = (float(circle.split(f'{name}="')[1].split('"')[0]) for name in ("cx", "cy"))
        assert 62 <= cx <= 542
        assert 14 <= cy <= 314


def test_the_table_is_plain_text_that_cannot_steer_the_terminal():
    log = outcomes(evil=True)
    table = whole(log, title=EVIL, notes=[EVIL]).to_table(90)
    assert all(c == "\n" or c.isprintable() for c in table)
    plain = whole(outcomes()).to_table(90)
    for text in ("always base", "router", "oracle", "AIQ", "calibration", "worst mistakes", "gain over"):
        assert text in plain
    assert max(map(len, plain.splitlines())) <= 120


def test_printable_cuts_and_cleans():
    assert printable("a\x1b[31m\n b") == "a [31m b"
    assert printable("abcdef", 5) == "ab..."


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.03, 0.52), (0.41, 0.413), (-0.5, 0.5), (100.0, 9_000.0)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    assert len({round(b - a, 9) for a, b in pairwise(found)}) == 1


def test_one_query_and_equal_arms_still_make_a_report():
    log = Outcomes.from_rows([{"query_id": "1", "query": "q", "reward": {"a": 0.5, "b": 0.5}}])
    found = build_report(log, [0], confidence=[0.5], frontier=[Point(0.0, 0.5, "w", 0.0)])
    assert found.headroom.value == 0.0
    assert Report.from_json(found.to_json()) == found
    assert "<svg" in found.to_html()
    assert "always a" in found.to_table()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cost": [1.0]}, "cost must be finite numbers"),
        ({"confidence": np.full(60, np.nan)}, "confidence must be finite"),
        ({"stage": ["question"]}, "stage must have 60 names"),
        ({"others": {"kNN": np.full(60, 2)}}, r"kNN must be in 0\.\.1"),
        ({"others": {"kNN": np.zeros(60)}}, "kNN must be integers"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, message):
    with pytest.raises(DataError, match=message):
        whole(outcomes(), **change)


def test_partial_feedback_is_refused_with_the_cure():
    log = Outcomes.from_rows([{"query_id": str(i), "query": "q", "reward": {a: 1}} for i, a in enumerate("ab")])
    with pytest.raises(DataError, match="policy_value"):
        build_report(log, [0, 1])
