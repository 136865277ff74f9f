"""Migrations of the review store, by Alembic."""
