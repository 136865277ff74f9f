"""Errors of the review store."""

from __future__ import annotations


class ReviewStoreError(Exception):
    """The store cannot be opened, read or written. The message quotes no conversation and no password."""


class RecordRefused(ReviewStoreError):
    """The database refuses a record for its content: another attempt would fail too."""
