"""Pairs to label and the verdicts of annotators, in the review store. Blocks; the server calls it on threads.

An annotator sees a pair blinded: an id that tells nothing, two texts in an order that is drawn for this annotator, and the prompt.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from hashlib import blake2b

import msgspec
from sqlalchemy import Connection, delete, or_, select

from rewardserve.service.review.agreement import Agreement, agreement
from rewardserve.service.review.database import Database
from rewardserve.service.review.pairing import Candidate, SamplePair, Sampling, pairs_of
from rewardserve.service.review.records import (
    AlertRecord,
    LabelledPair,
    OrderedVerdict,
    QueuedPair,
    QueuePage,
    SampleRecord,
    StoredSample,
    Verdict,
)
from rewardserve.service.review.tables import alerts, labels, pairs, samples

MAX_CANDIDATES = 20_000
"""Latest samples of a run of which pairs are formed."""

_MAX_ALERTS = 1_000
_PART = 500
_SECOND_OPINION = 5
"""One in so many labelled pairs is shown to other annotators too."""

_SWAPPED: dict[str, OrderedVerdict] = {"first": "later", "second": "earlier"}
_IN_ORDER: dict[str, OrderedVerdict] = {"first": "earlier", "second": "later"}


class Labels:
    """Pairs and labels. All methods raise `ReviewStoreError`; all may be called on any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # -- the queue --------------------------------------------------------------------------------------------------

    def queue(self, run: str, annotator: str, sampling: Sampling, limit: int, at: float) -> QueuePage:
        """The next pairs of a run for an annotator, and how many are labelled and left. `at` is the time, in Unix seconds."""
        with self._database.reading() as connection:
            shown = connection.execute(select(pairs).where(pairs.c.run == run)).all()
            verdicts = self._annotators(connection, run)
            formed = self._formed(connection, run, sampling)
        mine = {pair for pair, names in verdicts.items() if annotator in names}
        ids = {SamplePair(row.earlier, row.later): row.id for row in shown}
        formed += sorted({SamplePair(row.earlier, row.later) for row in shown if row.sampling == sampling} - {*formed})
        left = [
            pair
            for pair in formed
            if (shown_as := ids.get(pair)) is None
            or (shown_as not in mine and _is_for_others(shown_as, verdicts.get(shown_as, ())))
        ]
        wanted = left[:limit]
        if any(pair not in ids for pair in wanted):  # the lock of the writer is taken for this alone
            with self._database.writing() as connection:
                ids |= {pair: self._show(connection, run, pair, sampling, at) for pair in wanted if pair not in ids}
        with self._database.reading() as connection:
            found = [_blinded(connection, ids[pair], annotator, *pair) for pair in wanted]
        return QueuePage([each for each in found if each is not None], len(mine), len(left))

    def _annotators(self, connection: Connection, run: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in connection.execute(select(labels.c.pair, labels.c.annotator).where(labels.c.run == run)):
            found.setdefault(row.pair, set()).add(row.annotator)
        return found

    def _formed(self, connection: Connection, run: str, sampling: Sampling) -> list[SamplePair]:
        columns = [samples.c[name] for name in ("id", "prompt_key", "flags", "evidence", "score", "audit")]
        query = select(*columns).where(samples.c.run == run).order_by(samples.c.id.desc()).limit(MAX_CANDIDATES)
        candidates = [
            Candidate(row.id, row.prompt_key, bool(row.flags), row.evidence, row.score or 0.0, row.audit)
            for row in connection.execute(query)
        ]
        alerted = _alerted(connection, run) if sampling == "alert" else ()
        return pairs_of(candidates, sampling, alerted)

    def _show(self, connection: Connection, run: str, pair: SamplePair, sampling: Sampling, at: float) -> str:
        """Give a pair an id."""
        new = secrets.token_hex(8)
        row = {"id": new, "run": run, "earlier": pair.earlier, "later": pair.later, "sampling": sampling, "at": at}
        connection.execute(self._database.insert(pairs).on_conflict_do_nothing(), [row])
        found = select(pairs.c.id).where(pairs.c.earlier == pair.earlier, pairs.c.later == pair.later)
        return str(connection.scalar(found))

    def alert_pairs(self, run: str, limit: int) -> list[tuple[StoredSample, StoredSample]]:
        """Responses to one prompt, an early one and one that an alert or a flag points at, the latest first. Not blinded."""
        with self._database.reading() as connection:
            found = self._formed(connection, run, "alert")[:limit]
            texts = _samples(connection, {number for pair in found for number in pair})
        return [
            (StoredSample(one, texts[one]), StoredSample(two, texts[two]))
            for one, two in found
            if one in texts and two in texts
        ]

    # -- verdicts ---------------------------------------------------------------------------------------------------

    def run_of(self, pair_id: str) -> str | None:
        """The run of a pair; None: there is no such pair."""
        with self._database.reading() as connection:
            return connection.scalar(select(pairs.c.run).where(pairs.c.id == pair_id))

    def add(self, pair_id: str, annotator: str, verdict: Verdict, at: float) -> int | None:
        """Store a verdict on a pair as the annotator saw it, in place of an earlier one. Return its number; None: no such pair."""
        ordered = (_SWAPPED if _is_swapped(pair_id, annotator) else _IN_ORDER).get(verdict, verdict)
        with self._database.writing() as connection:
            run = connection.scalar(select(pairs.c.run).where(pairs.c.id == pair_id))
            if run is None:
                return None
            mine = (labels.c.pair == pair_id) & (labels.c.annotator == annotator)
            connection.execute(delete(labels).where(mine))
            row = {"pair": pair_id, "run": run, "annotator": annotator, "verdict": ordered, "at": at}
            return int(connection.execute(labels.insert().values(row).returning(labels.c.id)).scalar_one())

    def remove(self, label_id: int, annotator: str) -> bool:
        """Delete a label of this annotator. Return whether there was one."""
        own = (labels.c.id == label_id) & (labels.c.annotator == annotator)
        with self._database.writing() as connection:
            return connection.execute(delete(labels).where(own)).rowcount > 0

    def labelled(self, run: str | None = None) -> Iterator[LabelledPair]:
        """Labelled pairs with their samples and verdicts, by their drawn ids. `run` None: of all runs."""
        last = ""
        while True:
            query = select(pairs).where(pairs.c.id > last, pairs.c.id.in_(select(labels.c.pair)))
            if run is not None:
                query = query.where(pairs.c.run == run)
            with self._database.reading() as connection:
                rows = connection.execute(query.order_by(pairs.c.id).limit(_PART)).all()
                verdicts = _verdicts(connection, [row.id for row in rows])
                texts = _samples(connection, {number for row in rows for number in (row.earlier, row.later)})
            for row in rows:
                if row.earlier in texts and row.later in texts:
                    yield LabelledPair(
                        row.id, row.run, row.sampling, row.earlier, row.later, texts[row.earlier], texts[row.later],
                        verdicts[row.id],
                    )  # fmt: skip
            if len(rows) < _PART:
                return
            last = rows[-1].id

    def agreement(self, run: str | None = None) -> Agreement:
        """How far annotators agree, by verdicts other than skips."""
        query = select(labels.c.pair, labels.c.annotator, labels.c.verdict).where(labels.c.verdict != "skip")
        if run is not None:
            query = query.where(labels.c.run == run)
        found: dict[str, dict[str, str]] = {}
        with self._database.reading() as connection:
            for row in connection.execute(query):
                found.setdefault(row.pair, {})[row.annotator] = row.verdict
        return agreement(found.values())


def forget(connection: Connection, sample_ids: Sequence[int]) -> None:
    """Delete the pairs of samples, and their labels."""
    of_samples = select(pairs.c.id).where(or_(pairs.c.earlier.in_(sample_ids), pairs.c.later.in_(sample_ids)))
    connection.execute(delete(labels).where(labels.c.pair.in_(of_samples)))
    connection.execute(delete(pairs).where(or_(pairs.c.earlier.in_(sample_ids), pairs.c.later.in_(sample_ids))))


def _is_for_others(pair_id: str, annotators: Collection[str]) -> bool:
    """Whether a pair is shown to one more annotator: it has no label, or is one of those for a second opinion."""
    return not annotators or int(pair_id[:8], 16) % _SECOND_OPINION == 0


def _is_swapped(pair_id: str, annotator: str) -> bool:
    return bool(blake2b(f"{pair_id} {annotator}".encode(), digest_size=1).digest()[0] & 1)


def _blinded(connection: Connection, pair_id: str, annotator: str, earlier: int, later: int) -> QueuedPair | None:
    """A pair as this annotator sees it; None: a sample of it is deleted."""
    found = _samples(connection, (earlier, later))
    if len(found) < 2:
        return None
    one, two = found[earlier], found[later]
    if _is_swapped(pair_id, annotator):
        one, two = two, one
    return QueuedPair(pair_id, one.prompt, one.response, two.response)


def _samples(connection: Connection, ids: Iterable[int]) -> dict[int, SampleRecord]:
    query = select(samples.c.id, samples.c.record).where(samples.c.id.in_(sorted(ids)))
    return {row.id: msgspec.json.decode(row.record, type=SampleRecord) for row in connection.execute(query)}


def _verdicts(connection: Connection, pair_ids: Sequence[str]) -> dict[str, dict[str, OrderedVerdict]]:
    found: dict[str, dict[str, OrderedVerdict]] = {}
    query = select(labels.c.pair, labels.c.annotator, labels.c.verdict).where(labels.c.pair.in_(pair_ids))
    for row in connection.execute(query.order_by(labels.c.id)):
        found.setdefault(row.pair, {})[row.annotator] = row.verdict
    return found


def _alerted(connection: Connection, run: str) -> set[str]:
    """The evidence of the latest alerts of a run."""
    query = select(alerts.c.record).where(alerts.c.run == run).order_by(alerts.c.id.desc()).limit(_MAX_ALERTS)
    found = (msgspec.json.decode(record, type=AlertRecord) for record in connection.scalars(query))
    return {each for alert in found for each in alert.evidence}
