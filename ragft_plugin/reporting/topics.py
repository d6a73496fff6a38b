"""Topics: what the questions of a log are about, and which arm answers each best.

Questions are vectors of TF-IDF weights of their words and pairs of words, grouped by k-means; the number of groups
is the one with the highest mean silhouette (Rousseeuw, 1987). A topic is named by the words that weigh most in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragft_plugin.evaluation.intervals import Interval, paired_bootstrap
from ragft_plugin.evaluation.outcomes import Outcomes
from ragft_plugin.types import FloatArray

MOST = 10
SAMPLE = 1000  # rows on which the silhouette is measured
LEAST = 12  # rows below which there is one topic
OTHER = "(other)"
# Words of asking that say nothing of what is asked about; "who", "where" and "when" do.
COMMON = (
    "a an and any are as at be by can could do does for from get give had has have how i if in is it its know me my "
    "need of on one or please some tell that the their them there these they this to us want was we were what which "
    "will with would you your"
).split()


@dataclass(frozen=True, slots=True)
class Topic:
    """Questions that read alike.

    Attributes:
        name: its strongest words.
        rows: which questions, indices into the log.
        share: of all questions.
        reward: arm -> mean reward on these questions.
        best_arm: highest mean net value here.
        lead: net value of ``best_arm`` minus that of the arm which is best overall, paired; 95 %.
        examples: a few questions, the most typical first.
    """

    name: str
    rows: tuple[int, ...]
    share: float
    reward: Mapping[str, float]
    best_arm: str
    lead: Interval
    examples: tuple[str, ...]

    @property
    def n(self) -> int:
        """Number of questions."""
        return len(self.rows)


def find_topics(
    outcomes: Outcomes, *, count: int | None = None, cost_weight: float = 0.0, seed: int = 0
) -> tuple[Topic, ...]:
    """Group the questions of a log, largest topic first.

    Args:
        outcomes: the log, with every arm's reward.
        count: number of topics; None chooses among 2 to 10.
        cost_weight: reward that one unit of cost is worth.
        seed: of k-means and of the resampling.

    Example:
        >>> from ragft_plugin.evaluation.outcomes import Outcome, Outcomes
        >>> rows = [Outcome(query_id=str(i), query=f"Who signs form {i}?", reward={"a": 1, "b": 0}) for i in range(5)]
        >>> [(topic.n, topic.best_arm) for topic in find_topics(Outcomes.from_rows(rows))]
        [(5, 'a')]
    """
    label, names, typical = _grouped([row.query for row in outcomes.rows], count, seed)
    return _topics(outcomes, label, names, typical, cost_weight, seed)


def group_topics(outcomes: Outcomes, *, cost_weight: float = 0.0, seed: int = 0) -> tuple[Topic, ...]:
    """The groups that the log itself names, as topics; empty if it names none."""
    given = [row.group for row in outcomes.rows]
    names = list(dict.fromkeys(name for name in given if name is not None))
    if not names:
        return ()
    label = np.array([len(names) if name is None else names.index(name) for name in given], dtype=np.intp)
    return _topics(outcomes, label, [*names, OTHER], np.ones(len(given)), cost_weight, seed)


def _topics(
    outcomes: Outcomes,
    label: NDArray[np.intp],
    names: Sequence[str],
    typical: FloatArray,
    cost_weight: float,
    seed: int,
) -> tuple[Topic, ...]:
    """Measure every label's rows."""
    texts = [row.query for row in outcomes.rows]
    net = outcomes.reward - cost_weight * outcomes.cost
    overall = int(np.round(net.mean(axis=0), 9).argmax())
    groups = outcomes.text_groups
    topics = []
    for number in np.unique(label):
        rows = np.flatnonzero(label == number)
        here = net[rows]
        best = int(np.round(here.mean(axis=0), 9).argmax())
        order = rows[np.argsort(-typical[rows], kind="stable")]
        topics.append(
            Topic(
                name=names[number],
                rows=tuple(rows.tolist()),
                share=len(rows) / len(texts),
                reward={arm: float(outcomes.reward[rows, j].mean()) for j, arm in enumerate(outcomes.arms)},
                best_arm=outcomes.arms[best],
                lead=paired_bootstrap(here[:, best], here[:, overall], seed=seed, groups=groups[rows]),
                examples=tuple(dict.fromkeys(texts[i] for i in order))[:3],
            )
        )
    return tuple(sorted(topics, key=lambda topic: (-topic.n, topic.name)))


def _grouped(texts: list[str], count: int | None, seed: int) -> tuple[NDArray[np.intp], list[str], FloatArray]:
    """Label of each text, name of each label, and how typical each text is of its label."""
    one = np.zeros(len(texts), dtype=np.intp), [OTHER], np.ones(len(texts))
    if len(texts) < LEAST and count is None:
        return one
    from sklearn.feature_extraction.text import TfidfVectorizer

    # A word of one question in a hundred names a thing, not a topic.
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), min_df=max(2, len(texts) // 100), max_df=0.9, sublinear_tf=True, stop_words=COMMON
    )
    try:
        vectors = vectorizer.fit_transform(texts)
    except ValueError:  # no word is left
        return one
    told = np.flatnonzero(np.diff(vectors.indptr) > 0)
    best = _clustered(vectors[told], count, seed)
    if best is None:
        return one
    words = vectorizer.get_feature_names_out()
    names = [_name(words, centre) for centre in best.cluster_centers_]
    label = np.full(len(texts), len(names), dtype=np.intp)
    label[told] = best.labels_
    typical = np.zeros(len(texts))
    typical[told] = np.asarray(vectors[told].multiply(best.cluster_centers_[best.labels_]).sum(axis=1)).ravel()
    return label, [*names, OTHER], typical


def _clustered(vectors: Any, count: int | None, seed: int) -> Any:
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    distinct = len({row.tobytes() for row in np.asarray(vectors.todense())}) if vectors.shape[0] < 5000 else 5000
    most = min(MOST, distinct - 1, vectors.shape[0] // 5)
    counts = [count] if count else range(2, most + 1)
    found, height = None, -np.inf
    for k in counts:
        if k > distinct:
            continue
        made = KMeans(k, n_init=4, random_state=seed).fit(vectors)
        if len(np.unique(made.labels_)) < 2:
            found = found or made
            continue
        score = silhouette_score(
            vectors, made.labels_, metric="cosine", sample_size=min(SAMPLE, vectors.shape[0]), random_state=seed
        )
        if score > height:
            found, height = made, score
    return found


def _name(words: Any, centre: FloatArray, most: int = 4) -> str:
    """The strongest words, without those that a stronger pair of words already holds."""
    kept: list[str] = []
    for i in np.argsort(-centre, kind="stable")[: 3 * most]:
        word = str(words[i])
        if centre[i] <= 0 or any(word in other.split() or set(word.split()) & set(other.split()) for other in kept):
            continue
        kept.append(word)
    return ", ".join(kept[:most]) or OTHER
