"""Tables of the review store. Texts are JSON in UTF-8 bytes: a database may refuse characters that a conversation has (NUL)."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

NO_STEP = -1
"""Step of a sample without one: NULL would be different from itself in the unique constraint."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_ID = BigInteger().with_variant(Integer, "sqlite")

samples = Table(
    "samples",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("run", Text, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
    Column("prompt_key", String(16), nullable=False),
    Column("evidence", String(16), nullable=False),
    Column("reason", String(16), nullable=False),
    Column("flags", Text, nullable=False),
    Column("n_bytes", Integer, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("score", Double),
    Column("audit", Double),
    UniqueConstraint("run", "step", "evidence"),
    sqlite_autoincrement=True,
)
"""`flags` are separated by spaces, with one before and after. `record` is the whole `SampleRecord`, the others are for queries."""

Index(
    "ix_samples_of_run",
    *(samples.c[name] for name in ("run", "id", "prompt_key", "flags", "evidence", "score", "audit")),
)
"""Has all columns by which pairs are formed, so that forming them reads no text."""

Index(None, samples.c.run, samples.c.prompt_key)
Index(None, samples.c.at)

alerts = Table(
    "alerts",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("run", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("record", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
Index(None, alerts.c.run, alerts.c.id)

runs = Table(
    "runs",
    metadata,
    Column("run", Text, primary_key=True),
    Column("first_at", Double, nullable=False),
    Column("last_at", Double, nullable=False),
    Column("n_samples", BigInteger, nullable=False),
    Column("n_alerts", BigInteger, nullable=False),
    Column("n_bytes", BigInteger, nullable=False),
)
"""Sums over the other two tables, kept with them: a list of runs reads no samples."""

Index(None, runs.c.last_at)

pairs = Table(
    "pairs",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("run", Text, nullable=False),
    Column("earlier", _ID, nullable=False),
    Column("later", _ID, nullable=False),
    Column("sampling", String(16), nullable=False),
    Column("at", Double, nullable=False),
    UniqueConstraint("earlier", "later"),
)
"""Pairs that were shown to an annotator. `id` is random, so it tells nothing of the samples; `earlier` and `later` are theirs."""

Index(None, pairs.c.run, pairs.c.at)
Index(None, pairs.c.later)

labels = Table(
    "labels",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("pair", String(16), nullable=False),
    Column("run", Text, nullable=False),
    Column("annotator", Text, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("at", Double, nullable=False),
    UniqueConstraint("pair", "annotator"),
    sqlite_autoincrement=True,
)
"""Verdicts: `earlier`, `later`, `tie`, `both_bad` or `skip`, as in `records.Verdict`."""

Index(None, labels.c.run, labels.c.id)
