"""The database of the review store: SQLite or Postgres, its connections, transactions and errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from rewardserve.service.review.errors import RecordRefused, ReviewStoreError

_TIMEOUT_S = 5.0
"""Seconds in which another writer of the same file has to end, and Postgres to accept a connection."""


class Database:
    """A database that is opened when it is first used. May be used on any thread; raises `ReviewStoreError`."""

    def __init__(self, database: str | Path) -> None:
        """Name the path of a file of SQLite or the URL of a Postgres database."""
        self.engine = _engine(database)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.insert = sqlite.insert if self.is_sqlite else postgresql.insert

    @property
    def name(self) -> str:
        """Where it is, without its password."""
        return self.engine.url.database or "" if self.is_sqlite else str(self.engine.url)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for queries."""
        with self.errors(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed at the end. It takes SQLite's lock at once: after a read it could not wait for it."""
        options = {"rewardserve_writes": True}
        with self.errors(), self.engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of the database as those of the store."""
        try:
            yield
        except (DataError, IntegrityError) as error:
            raise RecordRefused(f"{self.name}: {type(error.orig).__name__}") from None
        except DBAPIError as error:
            reason = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
            raise ReviewStoreError(f"{self.name}: {reason}") from None
        except SQLAlchemyError as error:
            raise ReviewStoreError(f"{self.name}: {type(error).__name__}") from None


def _engine(database: str | Path) -> Engine:
    url = _url(database)
    try:
        if url.get_backend_name() == "sqlite":
            return _sqlite_engine(url)
        return create_engine(
            url, hide_parameters=True, pool_pre_ping=True, connect_args={"connect_timeout": int(_TIMEOUT_S)}
        )
    except ModuleNotFoundError as error:
        raise ReviewStoreError(
            f"the driver {error.name} of Postgres is not installed: pip install 'rewardserve[postgres]'"
        ) from None
    except NoSuchModuleError:
        raise ReviewStoreError(f"the database {url.drivername} is not supported: use sqlite or postgresql") from None


def _url(database: str | Path) -> URL:
    """The URL of a database; a text without a scheme is the path of a file of SQLite."""
    if isinstance(database, Path) or "://" not in database:
        return URL.create("sqlite", database=str(database))
    try:
        url = make_url(database)
    except ArgumentError:
        raise ReviewStoreError("the database is neither the path of a file nor a URL of Postgres") from None
    if url.drivername in ("postgres", "postgresql"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ReviewStoreError(f"the database {url.drivername} is not supported: use sqlite or postgresql")
    return url


def _sqlite_engine(url: URL) -> Engine:
    """An engine for a file that its owner alone can read, with SQLite's write-ahead log, so that readers never wait."""
    if url.database:
        with suppress(OSError):  # the first connection has the reason
            os.close(os.open(url.database, os.O_CREAT | os.O_RDWR, 0o600))
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": _TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: object) -> None:
        connection.isolation_level = (
            None  # transactions begin below: Python's module would begin none before a SELECT or DDL
        )
        for pragma in ("auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = NORMAL", "secure_delete = ON"):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("rewardserve_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
