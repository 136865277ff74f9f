"""Install a separate environment for each peer, under `.bench/` in the checkout, once.

Package sources come from pip's configuration, which is read at run time and passed to uv.
"""

from __future__ import annotations

import ast
import ctypes.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from benchmarks.peers.record import Peer

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".bench"
_DONE = "installed.json"
_TCMALLOC = "libtcmalloc_minimal.so.4"
_PLACES = ("global", "user", "site", "install", ":env:")
"""Scopes of pip's configuration; a later one takes precedence."""


class NotInstalled(Exception):
    """The peer cannot be installed here; the message is the end of the installer's output."""


def same_libraries() -> tuple[str, ...]:
    """Installed versions of torch and transformers, so that a peer on the same libraries differs in nothing else."""
    return tuple(f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers"))


def python_of(peer: Peer) -> Path:
    """Python of this peer's environment, created if necessary. Raise `NotInstalled`."""
    if not peer.requirements:
        return Path(sys.executable)
    return environment(peer.name, peer.requirements, finish=peer.finish)


def environment(
    name: str,
    requirements: Sequence[str],
    alone: Sequence[str] = (),
    finish: Callable[[Path], None] | None = None,
    local_builds: bool = True,
    newer: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Path:
    """Python of the environment of this name, created if necessary. Raise `NotInstalled`.

    `alone`: packages installed without dependencies; also `newer`, packages that require a newer Python than this one but
    run on it. `finish` is called with the folder of a new environment. `local_builds=False` ignores the wheel folders of
    pip's configuration: they may hold a CPU build of torch where the index has the CUDA build.
    """
    folder = HOME / name
    record = json.dumps([sys.version, *requirements, *alone, *(each for of_one in newer.values() for each in of_one)])
    done = folder / _DONE
    if not done.is_file() or done.read_text() != record:
        print(f"installing {name} into {folder.relative_to(ROOT)} (once)", flush=True)
        _install(folder, requirements, alone, finish, local_builds, newer)
        done.write_text(record)
    return folder / "bin" / "python"


def add(peer: Peer, requirements: Sequence[str], alone: Sequence[str] = ()) -> Path:
    """Add packages to a peer's environment; installed ones stay unchanged. Return its Python. Raise `NotInstalled`.

    `alone`: packages installed without dependencies.
    """
    python = python_of(peer)
    folder = HOME / peer.name
    record, done = json.dumps([*requirements, *alone]), folder / "added.json"
    if done.is_file() and done.read_text() == record:
        return python
    pip: list[str | Path] = [_uv(), "pip", "install", "--quiet", "--python", python]
    there = subprocess.run([_uv(), "pip", "freeze", "--python", python], capture_output=True, text=True, check=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write(there.stdout)
        pins.flush()
        _run([*pip, "--constraints", pins.name, *requirements])
    if alone:
        _run([*pip, "--no-deps", *alone])
    done.write_text(record)
    return python


def _install(
    folder: Path,
    requirements: Sequence[str],
    alone: Sequence[str],
    finish: Callable[[Path], None] | None,
    local_builds: bool,
    newer: Mapping[str, Sequence[str]],
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _run([_uv(), "venv", "--quiet", "--python", sys.executable, folder])
    pip: list[str | Path] = [_uv(), "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
    _run([*pip, *requirements], local_builds=local_builds)
    if alone:
        _run([*pip, "--no-deps", *alone])
    for python, wanted in newer.items():
        _run([*pip, "--no-deps", "--python-version", python, *wanted])
    try:
        if finish:
            finish(folder)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotInstalled(_last_words(getattr(error, "stderr", "") or str(error))) from error


@cache
def _uv() -> Path:
    """uv, which is many times faster than pip: the installed one, else one in a separate environment."""
    found = shutil.which("uv")
    if found:
        return Path(found)
    folder = HOME / "uv"
    if not (folder / "bin" / "uv").is_file():
        _run([sys.executable, "-m", "venv", folder])
        _run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", "uv"])
    return folder / "bin" / "uv"


def _run(command: Sequence[str | Path], *, local_builds: bool = True) -> None:
    sources = {name: value for name, value in _sources().items() if local_builds or name != "UV_FIND_LINKS"}
    done = subprocess.run(command, env={**os.environ, **sources}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotInstalled(_last_words(done.stderr))


@cache
def _sources() -> dict[str, str]:
    """Package sources of pip's configuration, as settings of uv."""
    output = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    return {"UV_HTTP_TIMEOUT": "180", **uv_settings(output)}


def uv_settings(listed: str) -> dict[str, str]:
    """Convert the output of `pip config list` to variables for uv. A setting may have several values, by spaces or lines."""
    listed_values: dict[tuple[str, str], list[str]] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        where, _, setting = name.rpartition(".")
        listed_values[where, setting] = str(ast.literal_eval(value)).split()
    known = {
        setting: values for place in _PLACES for (where, setting), values in listed_values.items() if where == place
    }
    words = {"UV_FIND_LINKS": ",".join(known.get("find-links", ())),
             "UV_DEFAULT_INDEX": " ".join(known.get("index-url", ())),
             "UV_INDEX": " ".join(known.get("extra-index-url", ())),
             # pip installs the best version of all indexes
             "UV_INDEX_STRATEGY": "unsafe-best-match" if "extra-index-url" in known else ""}  # fmt: skip
    return {name: value for name, value in words.items() if value}


@cache
def tcmalloc() -> Path | None:
    """Allocator recommended by vLLM: the installed one, else one unpacked from Debian's package, else None."""
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"):
        if (Path(folder) / _TCMALLOC).is_file():
            return Path(folder) / _TCMALLOC
    unpacked = HOME / "tcmalloc"
    if not unpacked.is_dir() and shutil.which("apt-get") and shutil.which("dpkg"):
        _unpack("libtcmalloc-minimal4", unpacked)
    named = ctypes.util.find_library("tcmalloc_minimal")
    found = sorted(unpacked.rglob(_TCMALLOC)) if unpacked.is_dir() else []
    return found[0] if found else (Path(named) if named else None)


def _unpack(package: str, into: Path) -> None:
    """Unpack a Debian package without installing it. Does nothing if the package is not available."""
    into.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", package], cwd=into, capture_output=True, check=False)
    for archive in into.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, into], capture_output=True, check=False)


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[-3:])[-400:] if lines else "no output"
