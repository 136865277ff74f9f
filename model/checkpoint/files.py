"""Whether the files of a checkpoint are whole: a copy that stopped half-way is told by its files, before anything is loaded.

Looks at names, sizes and headers. Whether the numbers are the right ones is the contract's to say.
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
"""Read as JSON objects, by us or by transformers."""

_MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library reads at most."""


def check_files(folder: Path) -> None:
    """Raise `CheckpointError` with the file that is not whole, and what is wrong with it."""
    for path, is_whole in _to_check(folder):
        try:
            is_whole(path)
        except _NotWhole as error:
            raise CheckpointError(
                f"{path} is unreadable: {error}. The checkpoint was not copied or written to its end, or was changed: "
                "copy it again."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None


class _NotWhole(Exception):
    """Why a file cannot be what it was."""


def _to_check(folder: Path) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    for pattern in _OBJECTS:
        for path in sorted(folder.glob(pattern)):
            yield path, _index if path.name.endswith(".index.json") else _object
    for path in sorted(folder.glob("*.safetensors")):
        yield path, _safetensors
    for path in sorted(folder.glob("*.bin")):
        yield path, _pickle


def _object(path: Path) -> None:
    """A JSON object."""
    _parsed(path.read_bytes())


def _index(path: Path) -> None:
    """Tensor name -> file, and the files are there."""
    shards = _parsed(path.read_bytes()).get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise _NotWhole("there is no weight_map in it")
    for name in sorted(set(shards.values())):
        if not (path.parent / name).is_file():
            raise _NotWhole(f"it names {name}, which is not there")


def _safetensors(path: Path) -> None:
    """Eight bytes of length, a JSON header, and exactly the bytes that the header tells of."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 8 < 8 + length <= size:
            raise _NotWhole(f"{'it is empty' if not size else 'it is cut off in its header'} ({size} bytes)")
        if length > _MAX_HEADER_BYTES:
            raise _NotWhole(f"its header would have {length} bytes, and may have {_MAX_HEADER_BYTES}")
        header = _parsed(file.read(length))
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (KeyError, TypeError, IndexError):
        raise _NotWhole("its header has no offsets") from None
    if size != expected:
        raise _NotWhole(f"it has {size} bytes, but its header tells of {expected}")


def _pickle(path: Path) -> None:
    """torch's pickles are zip archives, whose table of contents is at the end; very old ones are not."""
    with path.open("rb") as file:
        begins = file.read(2)
    if not begins:
        raise _NotWhole("it is empty")
    if begins == b"PK" and not zipfile.is_zipfile(path):
        raise _NotWhole("it is cut off, the end of the archive is missing")


def _parsed(data: bytes) -> dict[str, Any]:
    if not data:
        raise _NotWhole("it is empty")
    try:
        value = parse_json(data.decode(json.detect_encoding(data)))
    except UnicodeDecodeError as error:
        raise _NotWhole(f"it is no JSON (no text at byte {error.start})") from None
    except JsonDecodeError as error:
        raise _NotWhole(f"it is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise _NotWhole("it is no JSON object")
    return value
