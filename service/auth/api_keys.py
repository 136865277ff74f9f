"""The API keys: a file of names, digests, scopes and limits, read again whenever it changes.

A line of it, made by `rewardserve keys` or by hand:

    ppo-7  sha256:9f86d0...  score,metrics  requests_per_s=50 tokens_per_s=200000 burst_s=10 runs=ppo-7,sweep-* owner=team-a

`runs` binds a key to runs, by name or by how names begin, and these runs to such keys: no other key may send them. A run belongs
to the owner of the key that sends it, which is the key's name unless the line says otherwise: keys of one owner share runs.

Digests are plain SHA-256. Slow hashes protect passwords, which people choose and others guess; a key of 256 random bits
cannot be guessed however fast each guess is checked. A line of one word is a key as such, as it was before there were
digests: accepted, with a warning, and named by the beginning of its digest. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from rewardserve.model.text.text_files import decode_text
from rewardserve.service.auth.rate_limits import UNLIMITED, RateLimits
from rewardserve.service.storage.files import State, read_bounded, reason_of, repeat, state_of

SCOPES = ("score", "admin", "metrics")
SHORT = 16
"""Characters. A key of fewer is likely to be one that somebody chose."""

_PLAIN_SCOPES = frozenset({"score", "metrics"})
_PREFIX = "sha256:"
_LOOKED_AT_EVERY_S = 0.5
_NAME_DIGITS = 12
_MOST_BYTES = 4 * 2**20
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


@dataclass(frozen=True, slots=True)
class Key:
    """Who may ask for what. The key itself is not known, its SHA-256 is. `owner`: of the runs that it sends."""

    name: str
    digest: bytes
    scopes: frozenset[str]
    limits: RateLimits = UNLIMITED
    is_hashed: bool = True
    is_short: bool = False
    runs: RunNames = RunNames()
    owner: str = ""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are good right now. `is_required`: a request needs one of them, even if there is none."""

    keys: tuple[Key, ...] = ()
    reserved: RunNames = RunNames()
    is_required: bool = False

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
            names = ", ".join(plain)
            yield f"{len(plain)} keys are not hashed ({names}): anyone with access to the file can read them. See rewardserve keys."
        if short:
            yield f"{', '.join(short)}: shorter than {SHORT} characters, which can be guessed. See rewardserve keys."


def parse(text: str) -> KeyRing:
    """The keys of a file. Empty lines and lines that begin with # do not count. Raise `KeysError`."""
    ring, problems = sift(text)
    if problems:
        raise KeysError(problems[0])
    if not ring.keys:
        raise KeysError("there is no key in it: make one with rewardserve keys")
    return ring


def sift(text: str) -> tuple[KeyRing, list[str]]:
    """The keys of those lines that are one, and what is wrong with the others."""
    keys, problems = list[Key](), list[str]()
    for i, words in ((i, line.split()) for i, line in enumerate(text.splitlines(), 1)):
        if not words or words[0].startswith("#"):
            continue
        try:
            key = _key(i, words)
        except KeysError as error:
            problems.append(str(error))
            continue
        if any(key.name == other.name or key.digest == other.digest for other in keys):
            problems.append(f"line {i}: another line has the same name, or the same key")
        else:
            keys.append(key)
    return _ring_of(keys), problems


def _ring_of(keys: Iterable[Key], reserved: RunNames = RunNames()) -> KeyRing:
    """These keys; `reserved`: runs that are bound, besides those that these keys are bound to."""
    bound = [reserved, *(key.runs for key in keys)]
    prefixes = tuple({prefix for runs in bound for prefix in runs.prefixes})
    return KeyRing(
        tuple(keys), RunNames(frozenset().union(*(runs.names for runs in bound)), prefixes), is_required=True
    )


def merge(valid: Iterable[Key], before: Iterable[Key], now: Iterable[Key]) -> list[Key]:
    """The keys that are valid after a look. `before`, `now`: what the last look and this one have read.

    A new key counts when both have read it alike. One that is valid ends, or changes, when neither has read it as it is. So half
    a line that is being written does nothing, and a file that never holds still postpones nothing.
    """
    old, earlier, new = ({key.digest: key for key in keys} for keys in (valid, before, now))
    merged = [_merged(old.get(each), earlier.get(each), new.get(each)) for each in {**new, **old}]
    return [key for key in merged if key is not None]


def _merged(valid: Key | None, before: Key | None, now: Key | None) -> Key | None:
    if valid is None:
        return now if now == before else None
    return valid if valid in (before, now) else now


def line_of(
    name: str, key: str, scopes: frozenset[str], limits: RateLimits, runs: Sequence[str] = (), owner: str = ""
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
        if not plain.isprintable():
            raise KeysError(f"line {i}: a key has characters that can be printed")
        digest = hashlib.sha256(plain.encode()).digest()
        # Not by its place in the file: limits, runs and log lines would pass to another key when a line is inserted.
        name = f"key-{digest.hex()[:_NAME_DIGITS]}"
        return Key(name, digest, _PLAIN_SCOPES, is_hashed=False, is_short=len(plain) < SHORT)
    if len(words) < 3 or not words[1].startswith(_PREFIX):
        raise KeysError(f"line {i}: write NAME sha256:HEX SCOPES, as rewardserve keys does")
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


def _limits(i: int, words: list[str]) -> RateLimits:
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if name not in _LIMITS or not 0 < found[name] < inf:
            raise KeysError(
                f"line {i}: a limit is one of {', '.join(_LIMITS)}, =, and a number above zero; besides, there are runs= and owner="
            )
    return RateLimits(**found)


class KeyFile:
    """The keys of a file, as it is now. `look` reads it, on a thread; `ring` never waits.

    A readable file says which keys are valid, as `merge` reads two looks in a row: a line that is no key is none, and a file
    without keys, or no file, means that no key is valid. Only a file that cannot be read leaves the keys as they were.
    `tell(names, why)` is called for every change, with the valid keys; `why` is what is wrong with the file in two looks in a row.
    """

    def __init__(self, path: Path, ring: KeyRing, tell: Callable[[Sequence[str], str | None], None]) -> None:
        self._path = path
        self._ring = ring
        self._tell = tell
        self._state: State | None = None
        self._is_settled = False
        self._seen = ring.keys
        self._why: str | None = None
        self._told_why: str | None = None

    def ring(self) -> KeyRing:
        """The keys that are valid right now."""
        return self._ring

    def start(self) -> Callable[[], None]:
        """Look twice a second, until the returned function is called."""
        return repeat(self.look, _LOOKED_AT_EVERY_S, "keys")

    def look(self) -> None:
        """Read the file, unless two looks in a row have read what is there."""
        state = state_of(self._path)
        if self._is_settled and state == self._state:
            return
        self._is_settled, self._state = state == self._state, state
        keys = self._ring.keys
        try:
            seen, why = _read(self._path)
        except KeysError as error:
            why = f"{error}; the keys of before stay valid"
        else:
            keys, self._seen = tuple(merge(keys, self._seen, seen)), seen
        # A run stays with the keys that were bound to it, also where the line that says so cannot be read.
        self._take(_ring_of(keys, RunNames() if why is None else self._ring.reserved), why)

    def _take(self, ring: KeyRing, why: str | None) -> None:
        is_lasting, self._why = (why is None) == (self._why is None), why
        told_why, self._told_why = self._told_why, why if is_lasting else self._told_why
        is_news = set(ring.keys) != set(self._ring.keys) or self._told_why != told_why
        self._ring = ring
        if is_news:
            self._tell([key.name for key in ring.keys], self._told_why)


def _read(path: Path) -> tuple[tuple[Key, ...], str | None]:
    """The keys of a file, and what is wrong with it. Raise `KeysError` where it cannot be read."""
    text = _text(path)
    if text is None:
        return (), "there is no file: no key is valid until there is one"
    ring, problems = sift(text)
    if problems:
        return ring.keys, f"{problems[0]}; this line is no key ({len(problems)} such lines)"
    return ring.keys, None if ring.keys else "there is no key in it: no key is valid"


def read(path: Path) -> KeyRing:
    """The keys of a file. Raise `KeysError`."""
    text = _text(path)
    if text is None:
        raise KeysError("there is no such file")
    return parse(text)


def _text(path: Path) -> str | None:
    """What a file holds; None: there is none. Raise `KeysError`."""
    try:
        return decode_text(read_bounded(path, _MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise KeysError(f"it cannot be read: {reason_of(error)}") from None
