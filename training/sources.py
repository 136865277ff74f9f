"""Rows of a source, one at a time, with the place they came from.

Reads JSONL(.gz) and Parquet files and whatever `datasets` loads. Knows nothing of what a row should hold.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import ConfigError, SourceConfig

_JSONL = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")


@dataclass(frozen=True, slots=True)
class Row:
    """One row: `file` and `line` (from 1) say where it is, `values` is None where `error` says why."""

    file: str
    line: int
    values: dict[str, Any] | None
    error: str = ""


def read(source: SourceConfig, cache: str | None = None) -> Iterator[Row]:
    """The rows of a source in their order. Raise `ConfigError` where there is no such source."""
    path = Path(source.path)
    if source.path.endswith(_JSONL):
        _check_exists(path, source)
        yield from _jsonl(path)
    elif source.path.endswith(".parquet"):
        _check_exists(path, source)
        yield from _parquet(path)
    else:
        yield from _datasets(source, cache)


def _check_exists(path: Path, source: SourceConfig) -> None:
    if not path.is_file():
        raise ConfigError(f"data source {source.path!r} is no file (looked in {path.parent.resolve()})")


def _jsonl(path: Path) -> Iterator[Row]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as raw:
        for line, data in enumerate(raw, start=1):
            if data.strip():
                yield _json_row(str(path), line, data)


def _json_row(file: str, line: int, data: bytes) -> Row:
    try:
        values = json.loads(data)
    except ValueError as error:
        return Row(file, line, None, f"no JSON: {error}")
    if not isinstance(values, dict):
        return Row(file, line, None, f"a row is an object, got {type(values).__name__}")
    return Row(file, line, values)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    line = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
        for values in batch.to_pylist():
            line += 1
            yield Row(str(path), line, values)


def _datasets(source: SourceConfig, cache: str | None) -> Iterator[Row]:
    import datasets

    try:
        if (Path(source.path) / "state.json").is_file() or (Path(source.path) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(source.path)
            table = loaded[source.split] if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            table = datasets.load_dataset(source.path, source.subset, split=source.split, cache_dir=cache)
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise ConfigError(f"data source {source.path!r} (split {source.split!r}) cannot be loaded: {error}") from error
    for line, values in enumerate(table, start=1):
        yield Row(source.path, line, dict(values))
