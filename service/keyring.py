"""The API keys: a file of names, digests, scopes and limits, read again whenever it changes.

A line of it, made by `reward-keys` or by hand:

    ppo-7  sha256:9f86d0...  score,metrics  requests_per_s=50 tokens_per_s=200000 burst_s=10 runs=ppo-7,sweep-* owner=team-a

`runs` binds a key to runs, by name or by how names begin, and these runs to such keys: no other key may send them. A run belongs
to the owner of the key that sends it, which is the key's name unless the line says otherwise: keys of one owner share runs.

Digests are plain SHA-256. Slow hashes protect passwords, which people choose and others guess; a key of 256 random bits
cannot be guessed however fast each guess is checked. A line of one word is a key as such, as it was before there were
digests: accepted, with a warning. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.clock import Clock
from service.quota import UNLIMITED, Limits

SCOPES = ("score", "admin", "metrics")
SHORT = 16
"""Characters. A key of fewer is likely to be one that somebody chose."""

_PLAIN_SCOPES = frozenset({"score", "metrics"})
_PREFIX = "sha256:"
_LOOKED_AT_EVERY_S = 1.0
_LIMITS = ("requests_per_s", "tokens_per_s", "burst_s")
_MOST_RUNS = 64


class KeysError(Exception):
    """This is no file of keys. The message names the line, never what it holds."""


@dataclass(frozen=True, slots=True)
class RunNames:
    """Names of runs: these, and all that begin with one of `prefixes`."""

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def __contains__(self, run: str) -> bool:
        return run in self.names or run.startswith(self.prefixes)

    def __bool__(self) -> bool:
        return bool(self.names or self.prefixes)

    @property
    def sole(self) -> str | None:
        """The name, where there is just one."""
        return next(iter(self.names)) if len(self.names) == 1 and not self.prefixes else None


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request came with, and what runs it may name: `runs`, where the key is bound to some, otherwise all but
    `reserved`, to which other keys are bound.
    """

    owner: str = ""
    runs: RunNames = RunNames()
    reserved: RunNames = RunNames()

    def may_send(self, run: str) -> bool:
        """Whether a sample of this run may come with this key."""
        return run in self.runs if self.runs else run not in self.reserved


ANYBODY = Caller()


@dataclass(frozen=True, slots=True)
class Key:
    """Who may ask for what. The key itself is not known, its SHA-256 is. `owner`: of the runs that it sends."""

    name: str
    digest: bytes
    scopes: frozenset[str]
    limits: Limits = UNLIMITED
    is_hashed: bool = True
    is_short: bool = False
    runs: RunNames = RunNames()
    owner: str = ""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are good right now."""

    keys: tuple[Key, ...] = ()
    reserved: RunNames = RunNames()

    def caller(self, key: Key) -> Caller:
        """Who sends what comes with this key."""
        return Caller(key.owner or key.name, key.runs, self.reserved)

    def find(self, offered: bytes) -> Key | None:
        """The key that is offered, if it is one of ours."""
        digest = hashlib.sha256(offered).digest()
        # Every key is compared, in constant time, so that the time of an answer tells nothing.
        matches = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches else None

    def warnings(self) -> Iterator[str]:
        """What an operator should mend."""
        plain = [key.name for key in self.keys if not key.is_hashed]
        short = [key.name for key in self.keys if key.is_short]
        if plain:
            yield f"{len(plain)} keys are not hashed ({', '.join(plain)}): whoever reads the file has them. See reward-keys."
        if short:
            yield f"{', '.join(short)}: shorter than {SHORT} characters, which can be guessed. See reward-keys."


def parse(text: str) -> KeyRing:
    """The keys of a file. Empty lines and lines that begin with # do not count. Raise `KeysError`."""
    lines = [(i, line.split()) for i, line in enumerate(text.splitlines(), 1)]
    keys = tuple(_key(i, words) for i, words in lines if words and not words[0].startswith("#"))
    if not keys:
        raise KeysError("there is no key in it: make one with reward-keys")
    if len({key.name for key in keys}) < len(keys) or len({key.digest for key in keys}) < len(keys):
        raise KeysError("two lines have the same name, or the same key")
    bound = [key.runs for key in keys if key.runs]
    reserved = RunNames(frozenset().union(*(r.names for r in bound)), tuple({p for r in bound for p in r.prefixes}))
    return KeyRing(keys, reserved)


def line_of(
    name: str, key: str, scopes: frozenset[str], limits: Limits, runs: Sequence[str] = (), owner: str = ""
) -> str:
    """A key as the file has it. `runs`: names, or what names begin with and a `*`."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    numbers = [
        f"{each}={getattr(limits, each):g}" for each in _LIMITS if getattr(limits, each) != getattr(UNLIMITED, each)
    ]
    words = [f"runs={','.join(runs)}"] * bool(runs) + [f"owner={owner}"] * bool(owner)
    return "  ".join([name, _PREFIX + digest, ",".join(s for s in SCOPES if s in scopes), *numbers, *words])


def _key(i: int, words: list[str]) -> Key:
    if len(words) == 1 and not words[0].startswith(_PREFIX):
        plain = words[0]
        digest = hashlib.sha256(plain.encode()).digest()
        return Key(f"line-{i}", digest, _PLAIN_SCOPES, is_hashed=False, is_short=len(plain) < SHORT)
    if len(words) < 3 or not words[1].startswith(_PREFIX):
        raise KeysError(f"line {i}: write NAME sha256:HEX SCOPES, as reward-keys does")
    name, digest_text, scopes, *numbers = words
    if not _is_name(name):
        raise KeysError(f"line {i}: the name has 1 to 64 characters that can be printed")
    try:
        digest = bytes.fromhex(digest_text.removeprefix(_PREFIX))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size or digest == hashlib.sha256().digest():
        raise KeysError(f"line {i}: a digest is sha256: and 64 hexadecimal digits, and not that of nothing")
    runs, owner = (_word(i, numbers, each) for each in ("runs", "owner"))
    if owner is not None and not _is_name(owner):
        raise KeysError(f"line {i}: an owner has 1 to 64 characters that can be printed")
    limits = [word for word in numbers if not word.startswith(("runs=", "owner="))]
    return Key(name, digest, _scopes(i, scopes), _limits(i, limits), runs=_run_names(i, runs), owner=owner or "")


def _is_name(text: str) -> bool:
    return text.isprintable() and 0 < len(text) <= 64


def _word(i: int, words: Sequence[str], name: str) -> str | None:
    """What `NAME=` says, if it is there. Raise `KeysError` where it is there twice."""
    found = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    if len(found) > 1:
        raise KeysError(f"line {i}: {name}= is there twice")
    return found[0] if found else None


def _run_names(i: int, text: str | None) -> RunNames:
    if text is None:
        return RunNames()
    each = text.split(",")
    if not all(0 < len(run) <= 256 and run.isprintable() and "*" not in run[:-1] and run != "*" for run in each):
        raise KeysError(
            f"line {i}: runs are names with commas between and without spaces; `name*` is all that begin so"
        )
    if len(each) > _MOST_RUNS:
        raise KeysError(f"line {i}: {len(each)} runs; a key can be bound to {_MOST_RUNS}")
    prefixes = tuple(run[:-1] for run in each if run.endswith("*"))
    return RunNames(frozenset(run for run in each if not run.endswith("*")), prefixes)


def _scopes(i: int, text: str) -> frozenset[str]:
    scopes = frozenset(text.split(","))
    if not scopes <= set(SCOPES):
        raise KeysError(f"line {i}: scopes are {', '.join(SCOPES)}, with commas and without spaces")
    return scopes


def _limits(i: int, words: list[str]) -> Limits:
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = -1.0
        if name not in _LIMITS or not 0 < found[name] < float("inf"):
            raise KeysError(
                f"line {i}: a limit is one of {', '.join(_LIMITS)}, =, and a number above zero; besides, there are runs= and owner="
            )
    return Limits(**found)


class KeyFile:
    """The keys of a file, as it is now. Looked at once a second at most, when somebody asks.

    `tell(names, why)` hears of every change. A file that is no good leaves the keys as they were; then there is a reason why.
    """

    def __init__(
        self, path: Path | None, ring: KeyRing, clock: Clock, tell: Callable[[Sequence[str], str | None], None]
    ) -> None:
        self._path = path
        self._ring = ring
        self._clock = clock
        self._tell = tell
        self._looked_at = clock.now()
        self._seen = None if path is None else _state(path)

    def ring(self) -> KeyRing:
        """The keys that are good right now."""
        if self._path is not None and self._clock.now() - self._looked_at >= _LOOKED_AT_EVERY_S:
            self._looked_at = self._clock.now()
            state = _state(self._path)
            if state != self._seen:
                self._seen = state
                self._read(self._path)
        return self._ring

    def _read(self, path: Path) -> None:
        why = None
        try:
            self._ring = read(path)
        except KeysError as error:
            why = str(error)
        self._tell([key.name for key in self._ring.keys], why)


def read(path: Path) -> KeyRing:
    """The keys of a file. Raise `KeysError`."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"it cannot be read: {type(error).__name__}") from None


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written, or another is put in its place."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
