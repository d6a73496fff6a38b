"""Encoder tuning: a sentence-transformers model learns which passages answered which queries, and is kept if it helps.

Positives are passages that answered a query well (decision log, outcomes, or labelled questions). Hard negatives are
what the knowledge base ranks highest without its holding the answer. Batches hold no text twice, since every other
passage of a batch serves as a negative too. The tuned encoder is kept only if held-out retrieval improves beyond
chance; then the knowledge base is encoded anew, and so gets another fingerprint, which routers and readers check.

Loss: multiple negatives ranking, Henderson et al., "Efficient Natural Language Response Suggestion", 2017.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ragft_plugin.errors import ConfigError, DataError
from ragft_plugin.evaluation.answers import contains
from ragft_plugin.evaluation.intervals import Interval, paired_bootstrap
from ragft_plugin.evaluation.outcome import Outcome
from ragft_plugin.evaluation.ranking import hit, reciprocal_rank
from ragft_plugin.retrieval.catalogue import Catalogue
from ragft_plugin.retrieval.encoder_model import load_model, train_model, weights_fingerprint
from ragft_plugin.retrieval.encoders import unit
from ragft_plugin.retrieval.knowledge_base import KnowledgeBase
from ragft_plugin.retrieval.layout import DATABASE
from ragft_plugin.retrieval.wrappers import SentenceTransformersEncoder
from ragft_plugin.types import FloatArray, Passage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Positive:
    """A query and a passage that answers it.

    Attributes:
        query: its text.
        passage_id: of a passage in the knowledge base.
        answers: accepted answers, where known; a passage that holds one is never a negative.
    """

    query: str
    passage_id: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EncoderReport:
    """What an encoder tuning did.

    Attributes:
        pairs, triplets: training pairs, and those among them that got a hard negative.
        held_out: queries of the comparison; their passages' documents are in no training pair.
        hit_before, hit_after: hit@1 of dense retrieval over the whole knowledge base.
        mrr_before, mrr_after: mean reciprocal rank at 10.
        gain: mean difference of the reciprocal ranks, query by query, with its 95 % interval.
        kept: the gain is above chance, so the encoder was kept.
        folder: where the tuned model lies, None if it was not kept.
        fingerprint: of its vectors.
    """

    pairs: int
    triplets: int
    held_out: int
    hit_before: float
    hit_after: float
    mrr_before: float
    mrr_after: float
    gain: Interval
    kept: bool
    folder: Path | None
    fingerprint: str

    def encoder(self) -> SentenceTransformersEncoder:
        """The tuned encoder.

        Raises:
            ConfigError: if it was not kept.
        """
        if self.folder is None:
            raise ConfigError(
                f"the tuned encoder was not kept, as retrieval did not improve ({self.gain}); use the old one"
            )
        return SentenceTransformersEncoder(load_model(self.folder), fingerprint=self.fingerprint)


def positives_from_log(
    rows: Iterable[Outcome | Mapping[str, Any]], *, least: float = 1.0, first: int = 1
) -> list[Positive]:
    """Positives from outcomes: queries that an arm with retrieval answered well, with its first passages.

    Args:
        rows: outcomes, as ``read_outcomes(path).rows`` or ``DecisionLog.outcomes().rows`` give them, or mappings
            with ``query``, ``passages``, ``reward`` per arm, and perhaps ``gold``.
        least: reward from which an answer counts as good.
        first: how many of the first passages are taken where there is no gold answer to look for.
    """
    found = []
    for outcome in rows:
        row = outcome if isinstance(outcome, Mapping) else outcome.model_dump()
        passages = row.get("passages") or []
        good = any(
            arm.startswith("rag") and r is not None and r >= least for arm, r in (row.get("reward") or {}).items()
        )
        if not good or not passages:
            continue
        gold = row.get("gold") or ()
        gold = (gold,) if isinstance(gold, str) else tuple(gold)
        chosen = [p for p in passages if gold and contains(p["text"], gold)] or ([] if gold else passages[:first])
        found += [Positive(row["query"], str(p["id"]), gold) for p in chosen[:first]]
    return found


def tune_encoder(
    knowledge_base: KnowledgeBase,
    positives: Sequence[Positive],
    model: Any,
    out: str | Path,
    *,
    eval_share: float = 0.3,
    epochs: float = 1.0,
    batch_size: int = 32,
    learning_rate: float = 2e-5,
    negatives: int = 20,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EncoderReport:
    """Tune an encoder on a knowledge base, and keep it if held-out retrieval improves.

    Args:
        knowledge_base: where passages and hard negatives come from; it is only read.
        positives: queries with a passage that answers them.
        model: a sentence-transformers model, its folder or name; the object is not changed.
        out: folder for the tuned model; must not exist.
        eval_share: share of the documents whose queries are held out.
        epochs: times every pair is seen.
        batch_size: pairs per step; every other passage in a batch is a negative.
        learning_rate: the highest.
        negatives: how deep the index is searched for a hard negative.
        seed: of split, order and training.
        progress: called with (steps done, steps in all).

    Raises:
        DataError: if there are too few positives, or passages are not in the knowledge base.
        ConfigError: for a wrong setting, or if ``out`` exists.
        MissingExtraError: if sentence-transformers is not installed.
    """
    if not 0.0 < eval_share < 1.0 or batch_size < 2 or epochs <= 0 or learning_rate <= 0:
        raise ConfigError(
            "eval_share must be in (0, 1), batch_size at least 2, epochs and learning_rate above 0, got "
            f"{eval_share}, {batch_size}, {epochs} and {learning_rate}"
        )
    target = Path(out)
    if target.exists():
        raise ConfigError(f"{target} exists already; name a folder for the new encoder that does not")
    passages = {p.id: p for p in knowledge_base.get(knowledge_base.ids())}
    train, held = _split(positives, passages, eval_share, seed)
    tuned = load_model(model)
    texts = {id: p.text for id, p in passages.items()}
    before = _ranks(tuned, held, texts)
    pairs = _with_negatives(knowledge_base, train, passages, negatives)
    beside = target.with_name(f".{target.name}.training")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        train_model(tuned, pairs, beside, epochs, batch_size, learning_rate, seed, progress)
        after = _ranks(tuned, held, texts)
        gain = paired_bootstrap([rr for _, rr in after], [rr for _, rr in before], seed=seed)
        hits = [float(np.mean([h for h, _ in ranks])) for ranks in (before, after)]
        kept = gain.low > 0.0 and hits[1] >= hits[0]
        if kept:
            final = beside / "final"
            tuned.save(str(final))
            final.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    report = EncoderReport(
        pairs=len(pairs),
        triplets=sum(negative is not None for _, _, negative in pairs),
        held_out=len(held),
        hit_before=hits[0],
        hit_after=hits[1],
        mrr_before=float(np.mean([rr for _, rr in before])),
        mrr_after=float(np.mean([rr for _, rr in after])),
        gain=gain,
        kept=kept,
        folder=target if kept else None,
        fingerprint=weights_fingerprint(tuned),
    )
    logger.info("encoder tuning: %s", report)
    return report


def reencode(knowledge_base: KnowledgeBase, report: EncoderReport, path: str | Path) -> KnowledgeBase:
    """A new knowledge base like the old one, encoded by the tuned encoder; the old one stays as it is.

    It has the same passages, the same settings, and the digests of the files that were indexed, so that indexing them
    again encodes nothing anew.

    Args:
        knowledge_base: the old one.
        report: of a tuning that was kept.
        path: directory of the new one.

    Raises:
        ConfigError: if the tuned encoder was not kept.
    """
    encoder = report.encoder()
    with closing(Catalogue(knowledge_base.path / DATABASE, read_only=True)) as catalogue:
        settings = catalogue.settings()
    # Digests first: should a file be indexed meanwhile, an old digest has it read again, a new one would never.
    digests = knowledge_base.sources()
    passages = knowledge_base.get(knowledge_base.ids())
    files: dict[str, list[Passage]] = {source: [] for source in digests}
    for passage in passages:
        source = passage.metadata.get("source")
        if isinstance(source, str) and source in files:
            files[source].append(passage)
    made = KnowledgeBase.create(path, encoder, require_filter=settings.require_filter, language=settings.language)
    try:
        made.add(passages)
        made.replace_sources({source: (held, digests[source]) for source, held in files.items()})
    except BaseException:
        made.close()
        raise
    return made


def _split(
    positives: Sequence[Positive], passages: Mapping[str, Passage], share: float, seed: int
) -> tuple[list[Positive], list[Positive]]:
    """Training and held-out positives; no document and no query is in both."""
    unique = list({(p.query, p.passage_id): p for p in positives}.values())
    missing = [p.passage_id for p in unique if p.passage_id not in passages]
    if missing:
        raise DataError(
            f"the knowledge base has no passage {missing[0]!r} ({len(missing)} are missing); index it again"
        )

    def document(p: Positive) -> str:
        return str(passages[p.passage_id].metadata.get("source") or p.passage_id)

    names = sorted({document(p) for p in unique})
    drawn = np.random.default_rng(seed).permutation(len(names))
    out = {names[i] for i in drawn[: round(share * len(names))]}
    held = [p for p in unique if document(p) in out]
    asked = {p.query for p in held}
    train = [p for p in unique if document(p) not in out and p.query not in asked]
    if len(train) < 2 or len(held) < 2:
        raise DataError(
            f"{len(unique)} positives from {len(names)} documents leave {len(train)} to train on and {len(held)} to "
            "hold out; at least two of each are needed, and hundreds to tell a gain from chance"
        )
    return train, held


def _with_negatives(
    knowledge_base: KnowledgeBase, train: Sequence[Positive], passages: Mapping[str, Passage], depth: int
) -> list[tuple[str, str, str | None]]:
    """Query, positive text and the hardest negative text that holds no answer, or None."""
    good: dict[str, set[str]] = {}
    for p in train:
        good.setdefault(p.query, set()).add(p.passage_id)
    made = []
    for p, ranked in zip(train, knowledge_base.retrieve([p.query for p in train], depth), strict=True):
        text = passages[p.passage_id].text
        wrong = (
            r.text
            for r in ranked
            if r.id not in good[p.query] and r.text != text and not (p.answers and contains(r.text, p.answers))
        )
        # Without answers nobody can tell whether a high-ranked passage answers the query as well.
        made.append((p.query, text, next(wrong, None) if p.answers else None))
    return made


def _ranks(model: Any, held: Sequence[Positive], texts: Mapping[str, str]) -> list[tuple[float, float]]:
    """hit@1 and reciprocal rank at 10 of every held-out query, by vectors alone, over all passages."""
    ids = list(texts)
    vectors = _encode(model, [texts[i] for i in ids])
    wanted: dict[str, set[str]] = {}
    for p in held:
        wanted.setdefault(p.query, set()).add(p.passage_id)
    scores = _encode(model, list(wanted)) @ vectors.T
    found = []
    for row, relevant in zip(scores, wanted.values(), strict=True):
        ranked = [ids[i] for i in np.argsort(-row, kind="stable")[:10]]
        found.append((hit(ranked, relevant, 1), reciprocal_rank(ranked, relevant, 10)))
    return found


def _encode(model: Any, texts: Sequence[str]) -> FloatArray:
    vectors = model.encode(list(texts), batch_size=32, convert_to_numpy=True, show_progress_bar=False)
    return unit(np.asarray(vectors, dtype=np.float64))
