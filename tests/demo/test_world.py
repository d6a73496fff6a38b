"""The world and the frozen exam: what is held out is held out, and wording gives nothing away."""

import random
import re
from collections import Counter, defaultdict

from ragft_plugin.demo.questions import KINDS, PER_KIND, documents, draw, exam_names, questions, taught_facts
from ragft_plugin.demo.training import facts_rows, tickets_rows
from ragft_plugin.demo.world import (
    ISSUES,
    PRIORITIES,
    RELATIONS,
    TICKET_OPENINGS,
    draw_site,
    is_held_out,
    passage,
    question,
    site_name,
)

# Words that carry no content of their own.
STOP = set(
    "a an the of is are was does do did to in at for it its who what which where when that has have i you me with"
    " please from by on as so".split()
)
UNSEEN = {
    "city": (
        "Tell me which location {x} stands in.",
        "Which town does {x} operate from?",
        "Do you know which city {x} is located in?",
    ),
    "manager": ("Tell me which boss directs {x}.", "Which director leads {x}?", "Do you know which manager runs {x}?"),
    "year": ("Tell me the opening when {x} was built.", "Which year did {x} open?", "Do you know the year {x} opened?"),
    "product": (
        "Tell me which goods {x} ships.",
        "Which output does {x} export?",
        "Do you know which product {x} makes?",
    ),
    "supplier": (
        "Tell me which provider stocks {x}.",
        "Which dealer equips {x}?",
        "Do you know which supplier furnishes {x}?",
    ),
    "engine": (
        "Tell me which generator turns {x}.",
        "Which turbine drives {x}?",
        "Do you know which engine feeds {x}?",
    ),
    "clearance": (
        "Tell me which badge guests of {x} carry.",
        "Which permit does {x} demand?",
        "Do you know which clearance visitors of {x} show?",
    ),
    "office": (
        "Tell me which parent {x} belongs to.",
        "Which authority does {x} answer to?",
        "Do you know which office audits {x}?",
    ),
}


def content(template):
    return set(re.findall(r"[a-z]+", template.replace("{x}", "").lower())) - STOP


def test_the_unseen_wordings_are_these():
    assert {name: relation.unseen for name, relation in RELATIONS.items()} == UNSEEN


def test_at_least_half_of_the_content_words_differ_from_every_training_wording():
    trained = [template for relation in RELATIONS.values() for template in relation.questions()]
    for templates in UNSEEN.values():
        for unseen in templates:
            for template in trained:
                words = content(unseen)
                assert len(words - content(template)) >= len(words) / 2, (unseen, template)


def test_every_word_of_an_unseen_wording_occurs_in_a_trained_text():
    known: set[str] = set()
    for relation in RELATIONS.values():
        for template in (*relation.questions(), *relation.statements()):
            known |= set(re.findall(r"[a-z]+", template.lower()))
    for templates in UNSEEN.values():
        for template in templates:
            words = set(re.findall(r"[a-z]+", template.replace("{x}", "").lower()))
            assert words <= known, (template, words - known)


def test_no_entity_stands_in_both_splits_and_kinds_are_equal():
    names = {}
    for split in ("calibration", "test"):
        asked = questions(split)
        assert Counter(q.kind for q in asked) == dict.fromkeys(KINDS, PER_KIND)
        sites = {p.metadata["title"] for p in documents()} | {s.name for s in taught_facts()}
        found = {w for q in asked for w in re.findall(r"[A-Z][a-z]+", q.query)}
        names[split] = {w for w in found if w in sites or is_held_out(w)} - {"Look", "Give", "Please", "New", "Open"}
    common = {"Which", "Tell", "What", "Name", "Who", "Where", "When", "Do", "I", "The", "This", "We", "No", "It"}
    assert not (names["calibration"] & names["test"]) - common - {"Whenever"}


def test_the_kinds_of_question_share_their_wordings():
    def wording(query):
        kept = re.sub(r"\b[A-Z][a-z]+\b", lambda m: m[0] if m[0] in openers else "X", query)
        return kept

    openers = {"Which", "Tell", "What", "Name", "Who", "Where", "When", "Do", "Look", "Give", "Please", "Open", "New"}
    openers |= {"The", "This", "We", "No", "It", "Whenever", "I"}
    by_kind = defaultdict(set)
    for split in ("calibration", "test"):
        for q in questions(split):
            by_kind[q.kind].add(wording(q.query))
    asked = [kind for kind in KINDS if not kind.endswith("ticket")]
    every = set().union(*(by_kind[kind] for kind in asked))
    templates = {wording(t.format(x="Xxx")) for r in RELATIONS.values() for t in (*r.questions(), *r.unseen)}
    assert every <= templates
    for kind in asked:  # each kind draws from all of them: it meets a good share
        assert len(by_kind[kind]) > 60
    assert {w.split(":")[0] for w in by_kind["plain ticket"]} == {w.split(":")[0] for w in by_kind["lookup ticket"]}
    assert all(any(o.split()[0] in w for o in TICKET_OPENINGS) for w in by_kind["plain ticket"])


def test_what_changed_is_taught_as_it_was_and_documented_as_it_is():
    taught = {site.name: site for site in taught_facts()}
    papers = defaultdict(str)
    for paper in documents():
        papers[paper.metadata["title"]] += paper.text + " "
    for q in (*questions("calibration"), *questions("test")):
        (name,) = [n for n in (*taught, *papers) if re.search(rf"\b{n}\b", q.query)][:1] or [None]
        match q.kind:
            case "adapter only":
                assert name in taught
                assert name not in papers
                assert q.answer in taught[name].facts.values()
            case "changed":
                assert q.answer in papers[name]
                assert q.answer not in taught[name].facts.values() or len(q.answer) < 7
            case "both":
                assert q.answer in papers[name]
                assert q.answer in taught[name].facts.values()
            case "documents only":
                assert name not in taught
                assert q.answer in papers[name]
            case "unknown":
                assert name is None
            case "plain ticket":
                assert name is None
                assert "city: unknown" in q.answer
            case "lookup ticket":
                assert "unknown" not in q.answer


def test_training_rows_hold_no_unseen_wording_and_no_name_of_the_exam_but_the_taught():
    taught = {site.name for site in taught_facts()}
    names = exam_names()
    assert taught < names
    wordings = [t.split("{x}") for relation in RELATIONS.values() for t in relation.unseen]
    for row in (*facts_rows(), *tickets_rows()):
        question = row["question"]
        assert not any(question.startswith(start) and question.endswith(end) for start, end in wordings)
        text = " ".join([question, *row.get("passages", ())])
        assert not set(re.findall(r"[A-Z][a-z]+", text)) & (names - taught)


def test_drawing_again_gives_the_committed_exam(tmp_path):
    draw(tmp_path)
    from ragft_plugin.demo import questions as module

    for name in ("questions.jsonl", "documents.jsonl", "taught.jsonl"):
        committed = (type(tmp_path)(module.__file__).with_name("data") / name).read_text()
        assert (tmp_path / name).read_text() == committed


def test_names_are_held_out_by_checksum_alone():
    rng = random.Random(0)
    for held_out in (True, False):
        assert all(is_held_out(site_name(rng, held_out=held_out)) is held_out for _ in range(50))


def test_a_passage_states_what_it_is_asked_to_state():
    rng = random.Random(1)
    site = draw_site(rng, held_out=True)
    text = passage(rng, site, ["city", "year"])
    assert site.facts["city"] in text
    assert site.facts["year"] in text
    assert text.count(site.name) == 2
    assert site.name in question(rng, site, "city")


def test_every_issue_and_priority_has_a_wording():
    assert all(ISSUES.values())
    assert all(PRIORITIES.values())
