"""The log as arrays: rewards, costs and propensities of every query and arm, checked and split.

Rows with the same query text never stand on both sides of a split, because a router that has seen the question
with its reward is not tested by it. Full feedback (every arm was run on every query) needs nothing more; partial
feedback needs the propensity of the logged arm, and ``require_learnable`` refuses a log without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragft_plugin.errors import DataError
from ragft_plugin.evaluation.outcome import Outcome, normalized_query, parse_outcome
from ragft_plugin.types import FloatArray

LEAK_ROWS = 20  # so many rows in which a fact equals a reward are no accident (2^-20 for a coin)

IntArray = NDArray[np.intp]
Folds = list[tuple[IntArray, IntArray]]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """A log of outcomes as arrays. Build it with ``from_rows`` or ``read_outcomes``.

    Attributes:
        rows: the outcomes.
        arms: names, in order of first appearance.
        reward: shape (n, a), NaN where the arm was not run.
        cost: shape (n, a). A cost the log does not state is the mean of the arm's stated costs,
            0 if there are none.
        arm: index of the logged arm, shape (n,); -1 where the row does not single one out.
        propensity: probability of the logged arm, shape (n,); 1 where all arms were run, NaN where unknown.
            None under full feedback. It is conditional on the evidence gathered (see ``stage_probability``).
        stage_probability: probability of having gathered that evidence, shape (n,).
    """

    rows: tuple[Outcome, ...]
    arms: tuple[str, ...]
    reward: FloatArray
    cost: FloatArray
    arm: IntArray
    propensity: FloatArray | None
    stage_probability: FloatArray

    @classmethod
    def from_rows(cls, rows: Iterable[Outcome | Mapping[str, Any]], arms: Sequence[str] | None = None) -> Outcomes:
        """Check rows against each other and lay them out.

        Args:
            rows: outcomes, or mappings of their fields.
            arms: the arms there are, in order; None means those of the log.

        Raises:
            DataError: for a wrong row, no rows, duplicate ids, unknown arms, mixed encoders, or a fact that
                is the reward under another name.
        """
        checked = tuple(
            row if isinstance(row, Outcome) else parse_outcome(row, None, i) for i, row in enumerate(rows, 1)
        )
        return tabulate(checked, tuple(arms) if arms is not None else None, None, None)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def full_feedback(self) -> bool:
        """Whether every arm was run on every query."""
        return not bool(np.isnan(self.reward).any())

    @property
    def propensities(self) -> FloatArray:
        """The logged distribution over arms, shape (n, a); NaN in rows that tell none."""
        table = np.full(self.reward.shape, np.nan)
        for i, row in enumerate(self.rows):
            if row.propensities is not None:
                table[i] = [row.propensities.get(name, 0.0) for name in self.arms]
        return table

    @property
    def forced(self) -> NDArray[np.bool_]:
        """Rows whose arm the caller named, shape (n,)."""
        return np.array([row.forced for row in self.rows], dtype=np.bool_)

    @property
    def texts(self) -> tuple[str, ...]:
        """The queries."""
        return tuple(row.query for row in self.rows)

    @property
    def text_groups(self) -> IntArray:
        """Integer per row, shape (n,); equal for rows with the same query text."""
        ids: dict[str, int] = {}
        keys = (normalized_query(row.query) for row in self.rows)
        return np.array([ids.setdefault(key, len(ids)) for key in keys], dtype=np.intp)

    @property
    def encoder(self) -> str | None:
        """Fingerprint of the encoder of all embeddings, or None."""
        return next((row.encoder for row in self.rows if row.encoder is not None), None)

    @property
    def embeddings(self) -> FloatArray | None:
        """Vectors of the queries, shape (n, dim), or None if a row has none."""
        if any(row.embedding is None for row in self.rows):
            return None
        return np.array([row.embedding for row in self.rows], dtype=np.float64)

    @property
    def draft_arms(self) -> tuple[str, ...]:
        """Arms with a logged draft in every row."""
        return tuple(a for a in self.arms if all(a in row.drafts for row in self.rows))

    @property
    def text_arms(self) -> tuple[str, ...]:
        """Arms with a draft or an answer in every row: those that a stage can run."""
        return tuple(a for a in self.arms if all(a in row.drafts or a in row.answers for row in self.rows))

    @property
    def has_passages(self) -> bool:
        """Whether every row has passages (perhaps none found)."""
        return all(row.passages is not None for row in self.rows)

    def take(self, indices: ArrayLike) -> Outcomes:
        """The rows at ``indices`` (integers, or a mask of shape (n,)), with the same arms and costs."""
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = chosen.astype(np.intp)
        index = np.arange(len(self))[chosen]
        return Outcomes(
            rows=tuple(self.rows[i] for i in index),
            arms=self.arms,
            reward=_frozen(self.reward[index]),
            cost=_frozen(self.cost[index]),
            arm=self.arm[index],
            propensity=None if self.propensity is None else _frozen(self.propensity[index]),
            stage_probability=_frozen(self.stage_probability[index]),
        )

    def folds(self, n_splits: int, seed: int = 0) -> Folds:
        """Split into folds of nearly equal size, same query text on one side only.

        Args:
            n_splits: number of folds, at least 2.
            seed: of the shuffle; the same seed gives the same folds.

        Returns:
            Per fold the sorted indices of its training and its test rows. Every row is tested once.

        Raises:
            DataError: if there are fewer distinct query texts than folds.
        """
        groups = self.text_groups
        sizes = np.bincount(groups)
        if n_splits < 2:
            raise DataError(f"{n_splits} folds asked for, expected at least 2")
        if len(sizes) < n_splits:
            raise DataError(
                f"{len(sizes)} distinct query texts cannot be split into {n_splits} folds; log more "
                "queries or ask for fewer folds"
            )
        shuffled = np.random.default_rng(seed).permutation(len(sizes))
        load = np.zeros(n_splits, dtype=np.intp)
        fold_of = np.empty(len(sizes), dtype=np.intp)
        # Largest groups first, each into the emptiest fold: sizes then differ by one group at most.
        for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
            fold_of[group] = int(np.argmin(load))
            load[fold_of[group]] += sizes[group]
        fold = fold_of[groups]
        return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(n_splits)]

    def require_learnable(self) -> Outcomes:
        """The rows one may learn from without bias: all of them, or those not forced.

        Raises:
            DataError: if feedback is partial and a row lacks its propensities or does not say which arm was
                chosen, or if no row is left.
        """
        if self.full_feedback:
            return self
        full = ~np.isnan(self.reward).any(axis=1)
        forced = self.forced & ~full
        assert self.propensity is not None  # by construction, under partial feedback
        for i in np.flatnonzero(~forced & ~full):
            name = f"query_id {self.rows[i].query_id!r}"
            if self.arm[i] < 0:
                raise DataError(
                    f"{name}: {len(self.rows[i].reward)} of {len(self.arms)} arms have a reward; name the "
                    "chosen one in 'arm', or score arms that gave no answer with 0"
                )
            if np.isnan(self.propensity[i]):
                raise DataError(
                    f"{name}: only arm {self.arms[self.arm[i]]!r} has a reward and there are no "
                    "propensities; log with exploration (propensities {arm: p}), or run every arm with "
                    "'ragft run-arms'"
                )
        if forced.all():
            raise DataError("every row was forced by the caller; log decisions of a policy")
        return self.take(~forced) if forced.any() else self


def tabulate(
    rows: tuple[Outcome, ...],
    arms: tuple[str, ...] | None,
    path: str | None,
    lines: list[int] | None,
) -> Outcomes:
    """Lay checked rows out as arrays; ``path`` and ``lines`` are for errors."""
    if not rows:
        raise DataError("there are no outcomes; make some with 'ragft run-arms'", path=path)
    found = _check_together(rows, arms, path, lines)
    names = arms if arms is not None else found
    column = {name: j for j, name in enumerate(names)}
    n, a = len(rows), len(names)
    reward = np.full((n, a), np.nan)
    cost = np.full((n, a), np.nan)
    arm = np.full(n, -1, dtype=np.intp)
    propensity = np.full(n, np.nan)
    for i, row in enumerate(rows):
        for name, value in row.reward.items():
            reward[i, column[name]] = value
        for name, value in row.cost.items():
            if name in column:
                cost[i, column[name]] = value
        logged = row.logged_arm
        if logged is not None:
            arm[i] = column[logged]
        if not np.isnan(reward[i]).any():
            propensity[i] = 1.0
        elif logged is not None and row.propensities is not None:
            propensity[i] = row.propensities.get(logged, np.nan)
    for j in range(a):
        stated = ~np.isnan(cost[:, j])
        cost[~stated, j] = cost[stated, j].mean() if stated.any() else 0.0
    _check_facts(rows, names, reward, path)
    partial = bool(np.isnan(reward).any())
    return Outcomes(
        rows=rows,
        arms=names,
        reward=_frozen(reward),
        cost=_frozen(cost),
        arm=arm,
        propensity=_frozen(propensity) if partial else None,
        stage_probability=_frozen(np.array([row.stage_probability for row in rows])),
    )


def _check_together(
    rows: tuple[Outcome, ...],
    arms: tuple[str, ...] | None,
    path: str | None,
    lines: list[int] | None,
) -> tuple[str, ...]:
    """Check what one row alone cannot tell; return the arms in order of first appearance."""
    seen: dict[str, int] = {}
    found: dict[str, None] = {}
    encoder: tuple[str | None, int] | None = None
    for i, row in enumerate(rows):
        line = lines[i] if lines is not None else i + 1

        def fail(message: str, line: int = line) -> DataError:
            if path is None:
                return DataError(f"row {line}: {message}")
            return DataError(message, path=path, line=line)

        if row.query_id in seen:
            raise fail(f"query_id {row.query_id!r} was used before, in row {seen[row.query_id]}")
        seen[row.query_id] = line
        # The propensities keep the router's order of the arms, which one row's rewards do not.
        for name in [*(row.propensities or ()), *row.reward]:
            if arms is not None and name not in arms:
                raise fail(f"unknown arm {name!r}, expected one of {', '.join(arms)}")
            found[name] = None
        if row.encoder is not None or row.embedding is not None:
            this = (row.encoder, len(row.embedding or ()))
            if encoder is not None and this != encoder:
                raise fail(
                    f"embedding of encoder {this[0]!r} with {this[1]} dimensions, but earlier rows have "
                    f"{encoder[0]!r} with {encoder[1]}; a log must keep to one encoder"
                )
            encoder = this
    return tuple(found)


def _check_facts(rows: tuple[Outcome, ...], arms: tuple[str, ...], reward: FloatArray, path: str | None) -> None:
    """Refuse a fact that is an arm's reward under another name."""
    for name in dict.fromkeys(name for row in rows for name in row.facts):
        fact = np.array([row.facts.get(name, np.nan) for row in rows])
        for j, arm in enumerate(arms):
            both = ~np.isnan(fact) & ~np.isnan(reward[:, j])
            earned = reward[both, j]
            if both.sum() < LEAK_ROWS or np.ptp(earned) == 0.0:
                continue
            if np.array_equal(fact[both], earned) or np.array_equal(1.0 - fact[both], earned):
                raise DataError(
                    f"fact {name!r} equals the reward of arm {arm!r} in all {both.sum()} rows: it is known "
                    "only afterwards; leave it out",
                    path=path,
                )


def _frozen(array: FloatArray) -> FloatArray:
    array.flags.writeable = False
    return array
