"""Check that the files of a checkpoint are complete, to detect an interrupted copy before anything is loaded.

Reads names, sizes and headers. The contract verifies the numbers.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rewardserve.model.checkpoint.record import CheckpointError
from rewardserve.model.text.text_files import JsonDecodeError, parse_json

_OBJECTS = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
            "generation_config.json", "scoring_contract.json", "calibration.json", "*.index.json")  # fmt: skip
"""Files that are JSON objects, read here or by transformers."""

_MAX_HEADER_BYTES = 100_000_000
"""Limit of the safetensors library."""


def check_files(folder: Path) -> None:
    """Raise `CheckpointError` with the first incomplete file and the reason."""
    for path, check in _to_check(folder):
        try:
            check(path)
        except _IncompleteFile as error:
            raise CheckpointError(
                f"{path} is unreadable: {error}. The copy of the checkpoint is incomplete, or the file was changed: "
                "copy it again."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


class _IncompleteFile(Exception):
    """A file is incomplete; the message has the reason."""


def _to_check(folder: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    for pattern in _OBJECTS:
        for path in sorted(folder.glob(pattern)):
            yield path, _check_index if path.name.endswith(".index.json") else _check_object
    for path in sorted(folder.glob("*.safetensors")):
        yield path, _check_safetensors
    for path in sorted(folder.glob("*.bin")):
        yield path, _check_pickle


def _check_object(path: Path) -> None:
    """Check a JSON object."""
    _parsed(path.read_bytes())


def _check_index(path: Path) -> None:
    """Check an index: tensor name -> file, and the files exist."""
    shards = _parsed(path.read_bytes()).get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise _IncompleteFile("it has no weight_map")
    for name in sorted(set(shards.values())):
        if not (path.parent / name).is_file():
            raise _IncompleteFile(f"it names {name}, which does not exist")


def _check_safetensors(path: Path) -> None:
    """Check eight bytes of length, a JSON header, and exactly as many bytes as the header names."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 8 < 8 + length <= size:
            raise _IncompleteFile(f"{'it is empty' if not size else 'it ends inside its header'} ({size} bytes)")
        if length > _MAX_HEADER_BYTES:
            raise _IncompleteFile(f"its header would have {length} bytes; the limit is {_MAX_HEADER_BYTES}")
        header = _parsed(file.read(length))
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (KeyError, TypeError, IndexError):
        raise _IncompleteFile("its header has no offsets") from None
    if size != expected:
        raise _IncompleteFile(f"it has {size} bytes, but its header names {expected}")


def _check_pickle(path: Path) -> None:
    """Check a pickle of torch: a zip archive, whose table of contents is at the end; very old ones are none."""
    with path.open("rb") as file:
        begins = file.read(2)
    if not begins:
        raise _IncompleteFile("it is empty")
    if begins == b"PK" and not zipfile.is_zipfile(path):
        raise _IncompleteFile("it is truncated: the end of the archive is missing")


def _parsed(data: bytes) -> dict[str, Any]:
    if not data:
        raise _IncompleteFile("it is empty")
    try:
        value = parse_json(data.decode(json.detect_encoding(data)))
    except UnicodeDecodeError as error:
        raise _IncompleteFile(f"it is no JSON (no text at byte {error.start})") from None
    except JsonDecodeError as error:
        raise _IncompleteFile(f"it is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise _IncompleteFile("it is no JSON object")
    return value
