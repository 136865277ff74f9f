"""Run the migrations on the connection that `store` gives."""

from __future__ import annotations

from alembic import context

from rewardserve.service.review.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter a column
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
