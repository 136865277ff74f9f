"""Pairs and labels; what forms pairs beside each sample, so that no text is read for it."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_PART = 500
_OF_RUN = ["run", "id", "prompt_key", "flags", "evidence", "score", "audit"]


class _Scores(msgspec.Struct):
    score: float
    audit: float | None = None


def upgrade() -> None:
    """Create the tables, and take the scores of samples out of their records."""
    op.add_column("samples", sa.Column("score", sa.Double))
    op.add_column("samples", sa.Column("audit", sa.Double))
    _copy_scores()
    op.drop_index("ix_samples_run_id", "samples")
    op.create_index("ix_samples_of_run", "samples", _OF_RUN)
    op.create_table(
        "pairs",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("earlier", _ID, nullable=False),
        sa.Column("later", _ID, nullable=False),
        sa.Column("sampling", sa.String(16), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_pairs"),
        sa.UniqueConstraint("earlier", "later", name="uq_pairs_earlier_later"),
    )
    op.create_index("ix_pairs_run_at", "pairs", ["run", "at"])
    op.create_index("ix_pairs_later", "pairs", ["later"])
    op.create_table(
        "labels",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("pair", sa.String(16), nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("annotator", sa.Text, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_labels"),
        sa.UniqueConstraint("pair", "annotator", name="uq_labels_pair_annotator"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_labels_run_id", "labels", ["run", "id"])


def _copy_scores() -> None:
    connection = op.get_bind()
    table = sa.table("samples", *(sa.column(name) for name in ("id", "record", "score", "audit")))
    last = 0
    while True:
        rows = connection.execute(
            sa.select(table.c.id, table.c.record).where(table.c.id > last).order_by(table.c.id).limit(_PART)
        ).all()
        for row in rows:
            scores = msgspec.json.decode(row.record, type=_Scores)
            connection.execute(
                sa.update(table).where(table.c.id == row.id).values(score=scores.score, audit=scores.audit)
            )
        if len(rows) < _PART:
            return
        last = rows[-1].id


def downgrade() -> None:
    """Drop the tables and columns."""
    for table in ("labels", "pairs"):
        op.drop_table(table)
    op.drop_index("ix_samples_of_run", "samples")
    op.create_index("ix_samples_run_id", "samples", ["run", "id"])
    with op.batch_alter_table("samples") as batch:
        batch.drop_column("audit")
        batch.drop_column("score")
