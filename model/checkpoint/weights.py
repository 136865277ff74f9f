"""Tensors in files: their names, reading some of them, and their digests.

Knows safetensors and torch's pickles; knows no architecture. A pickle is a program: `refuse_pickles` runs before any
file is opened, and a pickle that the operator allows is read with torch's `weights_only`, which runs no code.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewardserve.model.checkpoint.record import CheckpointError

_FORMS = (("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin"))
_BLOCK = 1 << 24
_LARGE_BYTES = 2**16
"""Bytes from which a tensor gets private pages."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
}  # fmt: skip
"""Dtypes by their names in a safetensors header."""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's tensors, chosen as in transformers, safetensors first; empty where there are none.

    Raise `CheckpointError` where a single file lies beside an index of other files: transformers reads the one, vLLM the other.
    """
    for index, single in _FORMS:
        files = _indexed(folder / index)
        if (folder / single).is_file():
            if files and files != [folder / single]:
                raise CheckpointError(
                    f"{folder} has two sets of weights: {single} and the {len(files)} files that {index} names "
                    f"({files[0].name}, ...). One was saved over the other: delete the one that is not the model."
                )
            return [folder / single]
        if files:
            return files
    return []


def unread_files(folder: Path) -> list[Path]:
    """The pickles that are ignored because the folder has safetensors."""
    files = weight_files(folder)
    if not files or not are_safe(files):
        return []
    pickled = [_FORMS[1][1], *(path.name for path in _indexed(folder / _FORMS[1][0]))]
    return [folder / name for name in dict.fromkeys(pickled) if (folder / name).is_file()]


def refuse_duplicates(files: list[Path]) -> None:
    """Raise `CheckpointError` for a tensor with different numbers in two of these files: readers would disagree."""
    first: dict[str, Path] = {}
    for path in files if len(files) > 1 else ():
        for name in tensor_names(path):
            other = first.setdefault(name, path)
            if other != path and not torch.equal(read_tensors(other, [name])[name], read_tensors(path, [name])[name]):
                raise CheckpointError(
                    f"{path.parent}: {other.name} and {path.name} both hold {name}, with different numbers. The files are of two "
                    "models: save the model again, into an empty folder."
                )


def _indexed(index: Path) -> list[Path]:
    """The files that an index names; empty where there is no index."""
    if not index.is_file():
        return []
    return [index.parent / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def are_safe(files: Iterable[Path]) -> bool:
    """Whether none of these files is a pickle."""
    return all(path.suffix == ".safetensors" for path in files)


def refuse_pickles(files: Iterable[Path], *, allowed: bool) -> None:
    """Raise `CheckpointError` where a file is not safetensors and the operator has not allowed pickles."""
    pickled = [path for path in files if path.suffix != ".safetensors"]
    if pickled and not allowed:
        raise CheckpointError(
            f"{pickled[0]} is a pickle, which can run code when it is read. Save the model as safetensors "
            "(save_pretrained does), or set allow_pickle if you trust their source."
        )


def tensor_names(path: Path) -> list[str]:
    """The names of the tensors in one file, in order."""
    if path.suffix == ".safetensors":
        return [name for name, _ in _header(path)[0]]
    return list(_unpickle(path))


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    return dict(_whole_header(path)[0].get("__metadata__") or {})


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Read some tensors of one file, in their stored dtype."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path, set(names))
    stored = _unpickle(path)
    return {name: stored[name] for name in names}


def read_all(files: Iterable[Path]) -> dict[str, Tensor]:
    """Read every tensor of safetensors files into private memory. Raise `CheckpointError` for a file truncated meanwhile."""
    return {name: tensor for path in files for name, tensor in _read_safetensors(path, None).items()}


def _read_safetensors(path: Path, names: set[str] | None) -> dict[str, Tensor]:
    """Read some tensors, or all, without a mapping: truncating a mapped file would kill the process (SIGBUS)."""
    entries, data_start = _header(path)
    found = {}
    with path.open("rb", buffering=0) as file:
        for name, entry in entries:
            if names is not None and name not in names:
                continue
            if entry["dtype"] not in _DTYPES:
                raise CheckpointError(f"{path}: {name} is of type {entry['dtype']}; supported are {', '.join(_DTYPES)}")
            begin, end = entry["data_offsets"]
            pages = allocate_pages(end - begin)
            file.seek(data_start + begin)
            rest = memoryview(pages.numpy())
            while rest:
                n = file.readinto(rest)
                if not n:
                    raise CheckpointError(f"{path} was truncated while it was read, in {name}: copy it again.")
                rest = rest[n:]
            found[name] = pages.view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    if names is not None and names - set(found):
        raise KeyError(min(names - set(found)))
    return found


def allocate_pages(n_bytes: int) -> Tensor:
    """Allocate bytes; large blocks in private pages, which return to the kernel when an engine frees them."""
    if n_bytes < _LARGE_BYTES:
        return torch.empty(n_bytes, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, n_bytes), dtype=torch.uint8)


def shapes(files: Iterable[Path], names: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the named tensors that are in any of these files."""
    return {name: tuple(tensor.shape) for name, tensor in find_tensors(files, names).items()}


def find_tensors(files: Iterable[Path], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Read the wanted tensors that are in any of these files."""
    wanted = set(wanted)
    found: dict[str, Tensor] = {}
    for path in files:
        here = [name for name in tensor_names(path) if name in wanted]
        if here:
            found |= read_tensors(path, here)
    return found


def digest(files: Iterable[Path], *, without: Iterable[str] = ()) -> str:
    """`sha256:...` over name, type, shape and bytes of every tensor, except those named in `without`.

    Independent of how the tensors are spread over files. A pickle counts as one block of bytes.
    """
    skip = set(without)
    with ThreadPoolExecutor(max_workers=8) as pool:  # hashlib releases the GIL: shards are read in parallel
        lines = sorted(line for part in pool.map(lambda p: _file_lines(p, skip), files) for line in part)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """`sha256:...` of one tensor's shape and float32 values."""
    plain = tensor.detach().float().contiguous().cpu()
    return "sha256:" + hashlib.sha256(str(tuple(plain.shape)).encode() + plain.numpy().tobytes()).hexdigest()


def _file_lines(path: Path, skip: set[str]) -> list[str]:
    if path.suffix != ".safetensors":
        return [f"{path.suffix} {_hash_range(path, 0, path.stat().st_size)}"]
    entries, data_start = _header(path)
    lines = []
    for name, entry in entries:
        if name in skip:
            continue
        begin, end = entry["data_offsets"]
        lines.append(f"{name} {entry['dtype']} {entry['shape']} {_hash_range(path, data_start + begin, end - begin)}")
    return lines


def _header(path: Path) -> tuple[list[tuple[str, dict[str, Any]]], int]:
    """The entries of a safetensors file and where its data begins."""
    header, data_start = _whole_header(path)
    return [(name, entry) for name, entry in header.items() if name != "__metadata__"], data_start


def _whole_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where its data begins (8 bytes of length, then JSON)."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        data = file.read(length)
    try:
        header: dict[str, Any] = json.loads(data)
    except ValueError:
        raise CheckpointError(f"{path} was truncated or overwritten while it was read: copy it again.") from None
    return header, 8 + length


def _hash_range(path: Path, begin: int, length: int) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(begin)
        while length > 0 and (block := file.read(min(_BLOCK, length))):
            sha.update(block)
            length -= len(block)
    return sha.hexdigest()


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # UnpicklingError where there is more than weights, others where it is no pickle
        raise CheckpointError(
            f"{path} holds something else than weights, or is damaged; no code of it was run. Save the model as safetensors."
        ) from error
    return stored


def make_readable(folder: Path) -> None:
    """Make the weights readable for all users: safetensors limits them to their owner, and a server often runs as another."""
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
