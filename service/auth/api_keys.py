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
from rewardserve.service.auth.events import AuthEvents
from rewardserve.service.auth.rate_limits import UNLIMITED, RateLimits
from rewardserve.service.storage.files import FileState, error_reason, file_state, poll_in_thread, read_bounded

SCOPES = ("score", "admin", "metrics")
MIN_KEY_CHARS = 16
"""Characters. A key of fewer is likely to be one that somebody chose."""

_PLAIN_SCOPES = frozenset({"score", "metrics"})
_PREFIX = "sha256:"
_POLL_INTERVAL_S = 0.5
_NAME_DIGITS = 12
_MAX_BYTES = 4 * 2**20
_LIMIT_NAMES = ("requests_per_s", "tokens_per_s", "burst_s")
_MAX_RUNS = 64


class ApiKeysError(Exception):
    """This is no file of keys. The message names the line, never what it holds."""


@dataclass(frozen=True, slots=True)
class RunPatterns:
    """Names of runs: these, and all that begin with one of `prefixes`."""

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def __contains__(self, run: str) -> bool:
        return run in self.names or run.startswith(self.prefixes)

    def __bool__(self) -> bool:
        return bool(self.names or self.prefixes)

    @property
    def only_name(self) -> str | None:
        """The name, where there is just one."""
        return next(iter(self.names)) if len(self.names) == 1 and not self.prefixes else None


@dataclass(frozen=True, slots=True)
class RunPermissions:
    """Whose key a request came with, and what runs it may name: `runs`, where the key is bound to some, otherwise all but
    `reserved`, to which other keys are bound.
    """

    owner: str = ""
    runs: RunPatterns = RunPatterns()
    reserved: RunPatterns = RunPatterns()

    def may_send(self, run: str) -> bool:
        """Whether a sample of this run may come with this key."""
        return run in self.runs if self.runs else run not in self.reserved


@dataclass(frozen=True, slots=True)
class ApiKey:
    """Who may ask for what. The key itself is not known, its SHA-256 is. `owner`: of the runs that it sends."""

    name: str
    digest: bytes
    scopes: frozenset[str]
    limits: RateLimits = UNLIMITED
    is_hashed: bool = True
    is_short: bool = False
    runs: RunPatterns = RunPatterns()
    owner: str = ""


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """All keys that are good right now. `is_required`: a request needs one of them, even if there is none."""

    keys: tuple[ApiKey, ...] = ()
    reserved: RunPatterns = RunPatterns()
    is_required: bool = False

    def current(self) -> ApiKeys:
        """These keys, as `ApiKeysFile.current`."""
        return self

    def permissions(self, key: ApiKey) -> RunPermissions:
        """Who sends what comes with this key."""
        return RunPermissions(key.owner or key.name, key.runs, self.reserved)

    def find(self, offered: bytes) -> ApiKey | None:
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
            yield f"{', '.join(short)}: shorter than {MIN_KEY_CHARS} characters, which can be guessed. See rewardserve keys."


def parse(text: str) -> ApiKeys:
    """The keys of a file. Empty lines and lines that begin with # do not count. Raise `ApiKeysError`."""
    api_keys, problems = parse_lines(text)
    if problems:
        raise ApiKeysError(problems[0])
    if not api_keys.keys:
        raise ApiKeysError("there is no key in it: make one with rewardserve keys")
    return api_keys


def parse_lines(text: str) -> tuple[ApiKeys, list[str]]:
    """The keys of those lines that are one, and what is wrong with the others."""
    keys, problems = list[ApiKey](), list[str]()
    for i, words in ((i, line.split()) for i, line in enumerate(text.splitlines(), 1)):
        if not words or words[0].startswith("#"):
            continue
        try:
            key = _parse_key(i, words)
        except ApiKeysError as error:
            problems.append(str(error))
            continue
        if any(key.name == other.name or key.digest == other.digest for other in keys):
            problems.append(f"line {i}: another line has the same name, or the same key")
        else:
            keys.append(key)
    return _api_keys_of(keys), problems


def _api_keys_of(keys: Iterable[ApiKey], reserved: RunPatterns = RunPatterns()) -> ApiKeys:
    """These keys; `reserved`: runs that are bound, besides those that these keys are bound to."""
    bound = [reserved, *(key.runs for key in keys)]
    prefixes = tuple({prefix for runs in bound for prefix in runs.prefixes})
    return ApiKeys(
        tuple(keys), RunPatterns(frozenset().union(*(runs.names for runs in bound)), prefixes), is_required=True
    )


def merge_keys(valid: Iterable[ApiKey], before: Iterable[ApiKey], now: Iterable[ApiKey]) -> list[ApiKey]:
    """The keys that are valid after a look. `before`, `now`: what the last look and this one have read.

    A new key counts when both have read it alike. One that is valid ends, or changes, when neither has read it as it is. So half
    a line that is being written does nothing, and a file that never holds still postpones nothing.
    """
    old, earlier, new = ({key.digest: key for key in keys} for keys in (valid, before, now))
    merged = [_merged(old.get(each), earlier.get(each), new.get(each)) for each in {**new, **old}]
    return [key for key in merged if key is not None]


def _merged(valid: ApiKey | None, before: ApiKey | None, now: ApiKey | None) -> ApiKey | None:
    if valid is None:
        return now if now == before else None
    return valid if valid in (before, now) else now


def format_line(
    name: str, key: str, scopes: frozenset[str], limits: RateLimits, runs: Sequence[str] = (), owner: str = ""
) -> str:
    """A key as the file has it. `runs`: names, or what names begin with and a `*`."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    numbers = [
        f"{each}={getattr(limits, each):g}"
        for each in _LIMIT_NAMES
        if getattr(limits, each) != getattr(UNLIMITED, each)
    ]
    words = [f"runs={','.join(runs)}"] * bool(runs) + [f"owner={owner}"] * bool(owner)
    return "  ".join([name, _PREFIX + digest, ",".join(s for s in SCOPES if s in scopes), *numbers, *words])


def _parse_key(i: int, words: list[str]) -> ApiKey:
    if len(words) == 1 and not words[0].startswith(_PREFIX):
        plain = words[0]
        if not plain.isprintable():
            raise ApiKeysError(f"line {i}: a key has characters that can be printed")
        digest = hashlib.sha256(plain.encode()).digest()
        # Not by its place in the file: limits, runs and log lines would pass to another key when a line is inserted.
        name = f"key-{digest.hex()[:_NAME_DIGITS]}"
        return ApiKey(name, digest, _PLAIN_SCOPES, is_hashed=False, is_short=len(plain) < MIN_KEY_CHARS)
    if len(words) < 3 or not words[1].startswith(_PREFIX):
        raise ApiKeysError(f"line {i}: write NAME sha256:HEX SCOPES, as rewardserve keys does")
    name, digest_text, scopes, *numbers = words
    if not _is_name(name):
        raise ApiKeysError(f"line {i}: the name has 1 to 64 characters that can be printed")
    try:
        digest = bytes.fromhex(digest_text.removeprefix(_PREFIX))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size or digest == hashlib.sha256().digest():
        raise ApiKeysError(f"line {i}: a digest is sha256: and 64 hexadecimal digits, and not that of nothing")
    runs, owner = (_option(i, numbers, each) for each in ("runs", "owner"))
    if owner is not None and not _is_name(owner):
        raise ApiKeysError(f"line {i}: an owner has 1 to 64 characters that can be printed")
    limits = [word for word in numbers if not word.startswith(("runs=", "owner="))]
    return ApiKey(
        name, digest, _parse_scopes(i, scopes), _parse_limits(i, limits), runs=_parse_runs(i, runs), owner=owner or ""
    )


def _is_name(text: str) -> bool:
    return text.isprintable() and 0 < len(text) <= 64


def _option(i: int, words: Sequence[str], name: str) -> str | None:
    """What `NAME=` says, if it is there. Raise `ApiKeysError` where it is there twice."""
    found = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    if len(found) > 1:
        raise ApiKeysError(f"line {i}: {name}= is there twice")
    return found[0] if found else None


def _parse_runs(i: int, text: str | None) -> RunPatterns:
    if text is None:
        return RunPatterns()
    each = text.split(",")
    if not all(0 < len(run) <= 256 and run.isprintable() and "*" not in run[:-1] and run != "*" for run in each):
        raise ApiKeysError(
            f"line {i}: runs are names with commas between and without spaces; `name*` is all that begin so"
        )
    if len(each) > _MAX_RUNS:
        raise ApiKeysError(f"line {i}: {len(each)} runs; a key can be bound to {_MAX_RUNS}")
    prefixes = tuple(run[:-1] for run in each if run.endswith("*"))
    return RunPatterns(frozenset(run for run in each if not run.endswith("*")), prefixes)


def _parse_scopes(i: int, text: str) -> frozenset[str]:
    scopes = frozenset(text.split(","))
    if not scopes <= set(SCOPES):
        raise ApiKeysError(f"line {i}: scopes are {', '.join(SCOPES)}, with commas and without spaces")
    return scopes


def _parse_limits(i: int, words: list[str]) -> RateLimits:
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if name not in _LIMIT_NAMES or not 0 < found[name] < inf:
            raise ApiKeysError(
                f"line {i}: a limit is one of {', '.join(_LIMIT_NAMES)}, =, and a number above zero; besides, there are runs= and "
                "owner="
            )
    return RateLimits(**found)


class ApiKeysFile:
    """The keys of a file, as it is now. `poll` reads it, on a thread; `current` never waits.

    A readable file says which keys are valid, as `merge_keys` reads two looks in a row: a line that is no key is none, and a file
    without keys, or no file, means that no key is valid. Only a file that cannot be read leaves the keys as they were.
    `events.on_keys_read` is called for every change, with the valid keys; `problem` is what is wrong with the file in two
    polls in a row.
    """

    def __init__(self, path: Path, api_keys: ApiKeys, events: AuthEvents) -> None:
        self._path = path
        self._current = api_keys
        self._events = events
        self._state: FileState | None = None
        self._is_stable = False
        self._last_read = api_keys.keys
        self._problem: str | None = None
        self._reported_problem: str | None = None

    def current(self) -> ApiKeys:
        """The keys that are valid right now."""
        return self._current

    def start(self) -> Callable[[], None]:
        """Look twice a second, until the returned function is called."""
        return poll_in_thread(self.poll, _POLL_INTERVAL_S, "keys")

    def poll(self) -> None:
        """Read the file, unless two looks in a row have read what is there."""
        state = file_state(self._path)
        if self._is_stable and state == self._state:
            return
        self._is_stable, self._state = state == self._state, state
        keys = self._current.keys
        try:
            seen, problem = _read(self._path)
        except ApiKeysError as error:
            problem = f"{error}; the keys of before stay valid"
        else:
            keys, self._last_read = tuple(merge_keys(keys, self._last_read, seen)), seen
        # A run stays with the keys that were bound to it, also where the line that says so cannot be read.
        self._replace(_api_keys_of(keys, RunPatterns() if problem is None else self._current.reserved), problem)

    def _replace(self, api_keys: ApiKeys, problem: str | None) -> None:
        is_lasting, self._problem = (problem is None) == (self._problem is None), problem
        reported_problem, self._reported_problem = (
            self._reported_problem,
            problem if is_lasting else self._reported_problem,
        )
        has_changed = set(api_keys.keys) != set(self._current.keys) or self._reported_problem != reported_problem
        self._current = api_keys
        if has_changed:
            self._events.on_keys_read([key.name for key in api_keys.keys], self._reported_problem)


def _read(path: Path) -> tuple[tuple[ApiKey, ...], str | None]:
    """The keys of a file, and what is wrong with it. Raise `ApiKeysError` where it cannot be read."""
    text = _read_text(path)
    if text is None:
        return (), "there is no file: no key is valid until there is one"
    api_keys, problems = parse_lines(text)
    if problems:
        return api_keys.keys, f"{problems[0]}; this line is no key ({len(problems)} such lines)"
    return api_keys.keys, None if api_keys.keys else "there is no key in it: no key is valid"


def read_api_keys(path: Path) -> ApiKeys:
    """The keys of a file. Raise `ApiKeysError`."""
    text = _read_text(path)
    if text is None:
        raise ApiKeysError("there is no such file")
    return parse(text)


def _read_text(path: Path) -> str | None:
    """What a file holds; None: there is none. Raise `ApiKeysError`."""
    try:
        return decode_text(read_bounded(path, _MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ApiKeysError(f"it cannot be read: {error_reason(error)}") from None
