"""The review store: samples and alerts in SQLite or Postgres. Blocks; the server calls it on threads.

The schema is that of the newest migration: `ReviewStore.open` migrates an older one. Deleted texts are gone from the files of
SQLite too, not only from the reach of queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import ColumnElement, Connection, delete, func, select, text, update

from rewardserve.service.review.database import Database
from rewardserve.service.review.errors import ReviewStoreError
from rewardserve.service.review.labels import Labels, forget
from rewardserve.service.review.records import (
    AlertRecord,
    RunCounts,
    SampleFilter,
    SampleRecord,
    StoredAlert,
    StoredSample,
)
from rewardserve.service.review.tables import NO_STEP, alerts, labels, pairs, runs, samples

ANY = SampleFilter()
MAX_PAGE = 1_000
"""Most samples of one read."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 0x72657677
"""Key of the lock in Postgres under which one process migrates at a time."""

_PART = 500
"""Samples that are deleted, or exported, at a time."""


class ReviewStore:
    """The store. All methods raise `ReviewStoreError`; all may be called on any thread."""

    def __init__(self, database: str | Path) -> None:
        """Name the store, the path of a file of SQLite or the URL of a Postgres database, without opening it."""
        self._database = Database(database)
        self._labels = Labels(self._database)

    @classmethod
    def open(cls, database: str | Path) -> ReviewStore:
        """Open the store and migrate it."""
        store = cls(database)
        try:
            store.upgrade()
        except BaseException:
            store.close()
            raise
        return store

    @property
    def name(self) -> str:
        """Where the store is, without its password."""
        return self._database.name

    @property
    def labels(self) -> Labels:
        """Pairs and their labels."""
        return self._labels

    def close(self) -> None:
        """Close all connections."""
        self._database.engine.dispose()

    # -- schema -----------------------------------------------------------------------------------------------------

    def upgrade(self, revision: str = "head") -> None:
        """Migrate to a newer revision of the schema. Raise `ReviewStoreError` where the store is newer than this server."""
        self._migrate(command.upgrade, revision)

    def downgrade(self, revision: str) -> None:
        """Migrate to an older revision; `base` deletes all tables."""
        self._migrate(command.downgrade, revision)

    def revision(self) -> str | None:
        """The revision of the schema; None before the first migration."""
        with self._database.reading() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def _migrate(self, direction: Any, revision: str) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        with self._database.writing() as connection:
            if not self._database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            current = MigrationContext.configure(connection).get_current_revision()
            known = {each.revision for each in ScriptDirectory.from_config(config).walk_revisions()}
            if current is not None and current not in known:
                raise ReviewStoreError(f"{self.name} has revision {current}, which a newer server has written")
            config.attributes["connection"] = connection
            try:
                direction(config, revision)
            except CommandError as error:
                raise ReviewStoreError(str(error)) from None

    # -- writing ----------------------------------------------------------------------------------------------------

    def add(self, new: Sequence[SampleRecord], raised: Sequence[AlertRecord] = ()) -> int:
        """Add samples and alerts. Return the number of samples that are new: one of the same run, step and texts is stored once."""
        with self._database.writing() as connection:
            stored = self._insert(connection, new) if new else []
            if raised:
                rows = [{"run": each.run, "at": each.at, "record": msgspec.json.encode(each)} for each in raised]
                connection.execute(alerts.insert(), rows)
            self._count(connection, stored, raised)
        return len(stored)

    def _insert(self, connection: Connection, new: Sequence[SampleRecord]) -> list[tuple[str, float, int]]:
        insert = self._database.insert(samples).on_conflict_do_nothing()
        returned = connection.execute(
            insert.returning(samples.c.run, samples.c.at, samples.c.n_bytes), [_row(each) for each in new]
        )
        return [(row.run, row.at, row.n_bytes) for row in returned]

    def _count(
        self, connection: Connection, stored: Sequence[tuple[str, float, int]], raised: Sequence[AlertRecord]
    ) -> None:
        """Add to the sums of the runs."""
        changes: dict[str, dict[str, Any]] = {}
        for run, at, n_samples, n_alerts, n_bytes in (
            *((run, at, 1, 0, size) for run, at, size in stored),
            *((each.run, each.at, 0, 1, 0) for each in raised),
        ):
            sums = changes.setdefault(
                run, {"run": run, "first_at": at, "last_at": at, "n_samples": 0, "n_alerts": 0, "n_bytes": 0}
            )
            sums["first_at"], sums["last_at"] = min(sums["first_at"], at), max(sums["last_at"], at)
            sums["n_samples"] += n_samples
            sums["n_alerts"] += n_alerts
            sums["n_bytes"] += n_bytes
        if not changes:
            return
        insert = self._database.insert(runs)
        added = insert.excluded
        least, most = (func.min, func.max) if self._database.is_sqlite else (func.least, func.greatest)
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[runs.c.run],
                set_={
                    "first_at": least(runs.c.first_at, added.first_at),
                    "last_at": most(runs.c.last_at, added.last_at),
                    **{name: runs.c[name] + added[name] for name in ("n_samples", "n_alerts", "n_bytes")},
                },
            ),
            [changes[run] for run in sorted(changes)],  # in one order, so that two writers never wait for each other
        )

    # -- deleting ---------------------------------------------------------------------------------------------------

    def delete_run(self, run: str) -> RunCounts | None:
        """Delete all samples and alerts of a run. Return what it had; None: the store has no such run."""
        with self._database.writing() as connection:
            known = connection.execute(select(runs).where(runs.c.run == run)).one_or_none()
            for table in (labels, pairs, samples, alerts, runs):
                connection.execute(delete(table).where(table.c.run == run))
        self._purge()
        return _counts(known) if known is not None else None

    def delete_sample(self, sample_id: int) -> bool:
        """Delete one sample. Return whether there was one."""
        with self._database.writing() as connection:
            n = self._delete_samples(connection, [sample_id])
        self._purge()
        return n > 0

    def expire(self, oldest_at: float, max_bytes: int) -> int:
        """Delete samples and alerts from before a time, and the oldest samples beyond a size. Return the number of samples."""
        n = 0
        while True:
            with self._database.writing() as connection:
                connection.execute(delete(alerts).where(alerts.c.at < oldest_at))
                old = connection.scalars(
                    select(samples.c.id).where(samples.c.at < oldest_at).order_by(samples.c.at).limit(_PART)
                ).all()
                if not old:
                    old = self._beyond(connection, max_bytes)
                n += self._delete_samples(connection, old)
                if not old:
                    self._forget_empty_runs(connection)
                    break
        if n:
            self._purge()
        return n

    def _beyond(self, connection: Connection, max_bytes: int) -> Sequence[int]:
        """The ids of the oldest samples, whose bytes are those above the limit, at most `_PART` of them."""
        excess = int(connection.scalar(select(func.coalesce(func.sum(runs.c.n_bytes), 0))) or 0) - max_bytes
        found = []
        if excess > 0:
            for row in connection.execute(
                select(samples.c.id, samples.c.n_bytes).order_by(samples.c.at, samples.c.id).limit(_PART)
            ):
                if excess <= 0:
                    break
                found.append(row.id)
                excess -= row.n_bytes
        return found

    def _delete_samples(self, connection: Connection, ids: Sequence[int]) -> int:
        if not ids:
            return 0
        sums = select(samples.c.run, func.count(), func.sum(samples.c.n_bytes)).where(samples.c.id.in_(ids))
        found = connection.execute(sums.group_by(samples.c.run).order_by(samples.c.run)).all()
        forget(connection, ids)
        connection.execute(delete(samples).where(samples.c.id.in_(ids)))
        for run, n, n_bytes in found:
            connection.execute(
                update(runs)
                .where(runs.c.run == run)
                .values(n_samples=runs.c.n_samples - n, n_bytes=runs.c.n_bytes - n_bytes)
            )
        return sum(n for _, n, _ in found)

    def _forget_empty_runs(self, connection: Connection) -> None:
        """Count alerts again, and delete the runs that have neither samples nor alerts."""
        counted = select(func.count()).where(alerts.c.run == runs.c.run).scalar_subquery()
        connection.execute(update(runs).where(runs.c.n_alerts > 0).values(n_alerts=counted))
        connection.execute(delete(runs).where(runs.c.n_samples <= 0, runs.c.n_alerts <= 0))

    def _purge(self) -> None:
        """Remove deleted texts from the files. SQLite overwrites it (`secure_delete`), and its log is cut here."""
        with self._database.errors():
            connection = self._database.engine.raw_connection()
            try:
                driver: Any = connection.driver_connection
                if self._database.is_sqlite:
                    # `execute` would free one page only: Python's module steps a statement without rows once.
                    driver.executescript("PRAGMA incremental_vacuum; PRAGMA wal_checkpoint(TRUNCATE)")
                else:
                    driver.autocommit = True
                    driver.execute("VACUUM samples, alerts, runs, labels, pairs")
                    driver.autocommit = False
            except self._database.engine.dialect.loaded_dbapi.Error as error:
                raise ReviewStoreError(f"{self.name}: {error}") from None
            finally:
                connection.close()

    # -- reading ----------------------------------------------------------------------------------------------------

    def samples(self, wanted: SampleFilter = ANY, limit: int = 100, before: int | None = None) -> list[StoredSample]:
        """Samples, the latest first, with ids below `before`; at most `MAX_PAGE`."""
        query = select(samples.c.id, samples.c.record).where(*_conditions(wanted))
        if before is not None:
            query = query.where(samples.c.id < before)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(samples.c.id.desc()).limit(min(limit, MAX_PAGE))).all()
        return [StoredSample(row.id, _decoded(row.record)) for row in rows]

    def sample(self, sample_id: int) -> SampleRecord | None:
        """One sample; None: there is none with this id."""
        with self._database.reading() as connection:
            record = connection.scalar(select(samples.c.record).where(samples.c.id == sample_id))
        return None if record is None else _decoded(record)

    def alerts(self, run: str, limit: int = 100) -> list[StoredAlert]:
        """Alerts of a run, the latest first."""
        query = select(alerts.c.id, alerts.c.record).where(alerts.c.run == run).order_by(alerts.c.id.desc())
        with self._database.reading() as connection:
            rows = connection.execute(query.limit(min(limit, MAX_PAGE))).all()
        return [StoredAlert(row.id, msgspec.json.decode(row.record, type=AlertRecord)) for row in rows]

    def runs(self, limit: int = 100) -> list[RunCounts]:
        """Runs, that with the latest sample or alert first."""
        with self._database.reading() as connection:
            rows = connection.execute(select(runs).order_by(runs.c.last_at.desc(), runs.c.run).limit(limit)).all()
        return [_counts(row) for row in rows]

    def export(self, wanted: SampleFilter = ANY) -> Iterator[SampleRecord]:
        """All samples, the oldest first. Samples that are added or deleted meanwhile may be left out."""
        last = 0
        while True:
            query = select(samples.c.id, samples.c.record).where(samples.c.id > last, *_conditions(wanted))
            with self._database.reading() as connection:
                rows = connection.execute(query.order_by(samples.c.id).limit(_PART)).all()
            for row in rows:
                yield _decoded(row.record)
            if len(rows) < _PART:
                return
            last = rows[-1].id


def is_missing(database: str) -> bool:
    """Whether the database is a file that does not exist."""
    return "://" not in database and not Path(database).exists()


def _row(sample: SampleRecord) -> dict[str, Any]:
    return {
        "run": sample.run,
        "step": NO_STEP if sample.step is None else sample.step,
        "at": sample.at,
        "prompt_key": sample.prompt_key,
        "evidence": sample.evidence,
        "reason": sample.reason,
        "flags": f" {' '.join(sample.flags)} " if sample.flags else "",
        "n_bytes": sample.n_bytes,
        "score": sample.score if isfinite(sample.score) else None,
        "audit": sample.audit,
        "record": msgspec.json.encode(sample),
    }


def _decoded(record: bytes) -> SampleRecord:
    return msgspec.json.decode(record, type=SampleRecord)


def _counts(row: Any) -> RunCounts:
    return RunCounts(row.run, row.n_samples, row.n_alerts, row.n_bytes, row.first_at, row.last_at)


def _conditions(wanted: SampleFilter) -> list[ColumnElement[bool]]:
    equal = {"run": wanted.run, "prompt_key": wanted.prompt_key, "reason": wanted.reason, "evidence": wanted.evidence}
    found: list[ColumnElement[bool]] = [samples.c[name] == value for name, value in equal.items() if value is not None]
    if wanted.flag is not None:
        found.append(samples.c.flags.contains(f" {wanted.flag} ", autoescape=True))
    if wanted.first_step is not None:
        found.append(samples.c.step >= wanted.first_step)
    if wanted.last_step is not None:
        found.append(samples.c.step.between(0, wanted.last_step))
    return found
