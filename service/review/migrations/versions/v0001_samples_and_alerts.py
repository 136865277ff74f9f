"""Samples, alerts, and their runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "samples",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("prompt_key", sa.String(16), nullable=False),
        sa.Column("evidence", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(16), nullable=False),
        sa.Column("flags", sa.Text, nullable=False),
        sa.Column("n_bytes", sa.Integer, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_samples"),
        sa.UniqueConstraint("run", "step", "evidence", name="uq_samples_run_step_evidence"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_samples_run_id", "samples", ["run", "id"])
    op.create_index("ix_samples_run_prompt_key", "samples", ["run", "prompt_key"])
    op.create_index("ix_samples_at", "samples", ["at"])
    op.create_table(
        "alerts",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_alerts_run_id", "alerts", ["run", "id"])
    op.create_table(
        "runs",
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("first_at", sa.Double, nullable=False),
        sa.Column("last_at", sa.Double, nullable=False),
        sa.Column("n_samples", sa.BigInteger, nullable=False),
        sa.Column("n_alerts", sa.BigInteger, nullable=False),
        sa.Column("n_bytes", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run", name="pk_runs"),
    )
    op.create_index("ix_runs_last_at", "runs", ["last_at"])


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("runs")
    op.drop_table("alerts")
    op.drop_table("samples")
