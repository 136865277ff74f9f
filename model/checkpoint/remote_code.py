"""Custom code of a checkpoint (`auto_map`). It is never run, so the function that it computes is not known.

Reads JSON files, which `files` has found complete.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rewardserve.model.checkpoint.record import CheckpointError

_FILES = ("config.json", "tokenizer_config.json", "adapter_config.json")
_REMOTE = "transformers_modules"
"""Package of the code that transformers has downloaded with a checkpoint; PEFT stores its name in an adapter."""


def refuse_remote_code(folders: Iterable[Path], *, ignored: bool, has_contract: bool) -> tuple[str, ...]:
    """Return notes on the custom code of these folders. Raise `CheckpointError` unless it is `ignored` or there is a contract.

    A written contract has golden probes, so the scores without that code are compared with those of training.
    """
    named = [each for folder in dict.fromkeys(folders) for each in _named_code(folder)]
    if not named:
        return ()
    listed = "; ".join(dict.fromkeys(named))
    if not (ignored or has_contract):
        raise CheckpointError(
            f"the checkpoint has custom code: {listed}. Such code is never run, and the classes of transformers that would "
            "replace it may compute another score. Save the model with a class that is part of transformers, and without auto_map. "
            "If that class computes the same score, set ignore_checkpoint_code."
        )
    reason = "by setting" if ignored else "because the contract was written without it"
    return (f"the checkpoint has custom code, which is ignored {reason}: {listed}",)


def _named_code(folder: Path) -> Iterator[str]:
    """Yield `AutoClass = module.Class in file` for each reference to code."""
    for file in _FILES:
        path = folder / file
        if path.is_file():
            for name, reference in _references(json.loads(path.read_bytes())):
                yield f"{name} = {reference} in {path}"


def _references(config: Any) -> Iterator[tuple[str, str]]:
    """Task and class of every reference at any depth: a model may consist of several."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            yield from _entries(part.get("auto_map"), "auto_map")
            for task, pipeline in _entries_of(part.get("custom_pipelines")):
                if isinstance(pipeline, dict) and isinstance(pipeline.get("impl"), str):
                    yield f"pipeline {task}", pipeline["impl"]
            library = _entries_of(part.get("auto_mapping"))
            yield from ((key, str(name)) for key, name in library if str(name).startswith(_REMOTE))
            waiting += [value for key, value in part.items() if key not in ("auto_map", "custom_pipelines")]


def _entries_of(value: Any) -> list[tuple[str, Any]]:
    return [(str(key), each) for key, each in value.items()] if isinstance(value, dict) else []


def _entries(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Names of classes: a text, a list of texts and nulls, or an object of these."""
    if isinstance(value, str) and value:
        yield name, value
    elif isinstance(value, list):
        for each in value:
            yield from _entries(each, name)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _entries(each, str(key))
