"""API keys: a file of names, digests, scopes and limits, which is read again when it changes.

A line, written by `rewardserve keys` or by hand:

    ppo-7  sha256:9f86d0...  score,metrics  requests_per_s=50 tokens_per_s=200000 burst_s=10 runs=ppo-7,sweep-* owner=team-a

`runs` binds a key to runs, by name or prefix, and these runs to their keys: no other key may send them. A run belongs
to the owner of the key that sends it, by default the name of the key: keys of one owner share runs.

Digests are plain SHA-256. Slow hashes protect passwords, which can be guessed; a key of 256 random bits
cannot, however fast a guess is checked. A line of one word is a plain key: accepted, with a warning, and named by the
beginning of its digest. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.model.text.text_files import decode_text, error_reason, read_bounded
from rewardserve.service.auth.events import AuthEvents
from rewardserve.service.auth.rate_limits import UNLIMITED, RateLimits
from rewardserve.service.storage.files import FileState, file_state

SCOPES = ("score", "admin", "review", "metrics")
MIN_KEY_CHARS = 16
"""A key with fewer characters is probably not random."""

_PLAIN_SCOPES = frozenset({"score", "metrics"})
_PREFIX = "sha256:"
_NAME_DIGITS = 12
_MAX_BYTES = 4 * 2**20
_LIMIT_NAMES = ("requests_per_s", "tokens_per_s", "burst_s")
_MAX_RUNS = 64


class ApiKeysError(Exception):
    """The file of keys is invalid. The message names the line, and never quotes it."""


@dataclass(frozen=True, slots=True)
class RunPatterns:
    """Names of runs: `names`, and all that begin with one of `prefixes`."""

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()

    def __contains__(self, run: str) -> bool:
        return run in self.names or run.startswith(self.prefixes)

    def __bool__(self) -> bool:
        return bool(self.names or self.prefixes)

    @property
    def only_name(self) -> str | None:
        """The only name, None if there are several or a prefix."""
        return next(iter(self.names)) if len(self.names) == 1 and not self.prefixes else None


@dataclass(frozen=True, slots=True)
class RunPermissions:
    """Owner of the key of a request, and the runs that the key may send: `runs` if it is bound to runs, otherwise all except
    `reserved`, to which other keys are bound.
    """

    owner: str = ""
    runs: RunPatterns = RunPatterns()
    reserved: RunPatterns = RunPatterns()

    def may_send(self, run: str) -> bool:
        """Whether the key may send samples of this run."""
        return run in self.runs if self.runs else run not in self.reserved

    def may_see(self, run: str) -> bool:
        """Whether the key may see what is known of this run: a key that is bound to no runs sees all."""
        return not self.runs or run in self.runs


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One API key with its scopes and limits, stored as its SHA-256 only. `owner`: of the runs that it sends."""

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
    """All valid keys. `is_required`: a request needs one of them, also if there are none."""

    keys: tuple[ApiKey, ...] = ()
    reserved: RunPatterns = RunPatterns()
    is_required: bool = False

    def current(self) -> ApiKeys:
        """Return these keys; the counterpart of `ApiKeysFile.current`."""
        return self

    def permissions(self, key: ApiKey) -> RunPermissions:
        """Return the owner of a key and its permitted runs."""
        return RunPermissions(key.owner or key.name, key.runs, self.reserved)

    def find(self, offered: bytes) -> ApiKey | None:
        """Return the offered key if it is valid."""
        digest = hashlib.sha256(offered).digest()
        # Every key is compared, in constant time, so that the response time reveals nothing.
        matches = [key for key in self.keys if hmac.compare_digest(digest, key.digest)]
        return matches[0] if matches else None

    def warnings(self) -> Iterator[str]:
        """Yield warnings about weak keys."""
        plain = [key.name for key in self.keys if not key.is_hashed]
        short = [key.name for key in self.keys if key.is_short]
        if plain:
            names = ", ".join(plain)
            yield f"{len(plain)} keys are not hashed ({names}), so the file reveals them: replace them with rewardserve keys."
        if short:
            yield f"{', '.join(short)}: shorter than {MIN_KEY_CHARS} characters, easy to guess: replace them with rewardserve keys."


def parse(text: str) -> ApiKeys:
    """Parse a file of keys. Empty lines and lines that begin with # are skipped. Raise `ApiKeysError`."""
    api_keys, problems = parse_lines(text)
    if problems:
        raise ApiKeysError(problems[0])
    if not api_keys.keys:
        raise ApiKeysError("the file has no key: make one with rewardserve keys")
    return api_keys


def parse_lines(text: str) -> tuple[ApiKeys, list[str]]:
    """Parse the lines of a file of keys. Return the keys, and the errors of invalid lines."""
    keys, problems = list[ApiKey](), list[str]()
    lines_of = dict[str | bytes, int]()
    for i, words in ((i, line.split()) for i, line in enumerate(text.splitlines(), 1)):
        if not words or words[0].startswith("#"):
            continue
        try:
            key = _parse_key(i, words)
        except ApiKeysError as error:
            problems.append(str(error))
            continue
        if key.name in lines_of:
            problems.append(f"line {i}: line {lines_of[key.name]} has the same name; a name may stand on one line only")
        elif key.digest in lines_of:
            problems.append(f"line {i}: line {lines_of[key.digest]} has the same key; a key may stand on one line only")
        else:
            keys.append(key)
            lines_of |= {key.name: i, key.digest: i}
    return _api_keys_of(keys), problems


def _api_keys_of(keys: Iterable[ApiKey], reserved: RunPatterns = RunPatterns()) -> ApiKeys:
    """Build the set of valid keys; `reserved`: bound runs besides those of these keys."""
    bound = [reserved, *(key.runs for key in keys)]
    prefixes = tuple({prefix for runs in bound for prefix in runs.prefixes})
    return ApiKeys(
        tuple(keys), RunPatterns(frozenset().union(*(runs.names for runs in bound)), prefixes), is_required=True
    )


def merge_keys(valid: Iterable[ApiKey], before: Iterable[ApiKey], now: Iterable[ApiKey]) -> list[ApiKey]:
    """Return the valid keys after a poll. `before`, `now`: the keys read by the previous poll and by this one.

    A new key becomes valid when both polls have read it with equal fields. A valid key ends, or changes, when neither poll has
    read it unchanged. So a partly written line has no effect, and a file that changes at every poll delays nothing.
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
    """Format a key as a line of the file. `runs`: names, or prefixes followed by `*`. Raise `ApiKeysError`."""
    for what, text in (("the name", name), ("the name of a run", ",".join(runs)), ("the owner", owner)):
        if any(character.isspace() for character in text):
            raise ApiKeysError(f"{what} has a space or a line break: fields of a line are separated by spaces")
    if not name or name.startswith("#"):
        raise ApiKeysError("the name is empty, or begins with #, as comments do")
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
            raise ApiKeysError(f"line {i}: a key must have printable characters only")
        digest = hashlib.sha256(plain.encode()).digest()
        # Named by digest, not by line number: an inserted line would move limits, runs and log lines to another key.
        name = f"key-{digest.hex()[:_NAME_DIGITS]}"
        return ApiKey(name, digest, _PLAIN_SCOPES, is_hashed=False, is_short=len(plain) < MIN_KEY_CHARS)
    if len(words) < 3 or not words[1].startswith(_PREFIX):
        raise ApiKeysError(f"line {i}: write NAME sha256:HEX SCOPES, as rewardserve keys does")
    name, digest_text, scopes, *numbers = words
    if not _is_name(name):
        raise ApiKeysError(f"line {i}: the name must have 1 to 64 printable characters")
    try:
        digest = bytes.fromhex(digest_text.removeprefix(_PREFIX))
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size or digest == hashlib.sha256().digest():
        raise ApiKeysError(
            f"line {i}: a digest must be sha256: and 64 hexadecimal digits, and not that of an empty key"
        )
    runs, owner = (_option(i, numbers, each) for each in ("runs", "owner"))
    if owner is not None and not _is_name(owner):
        raise ApiKeysError(f"line {i}: an owner must have 1 to 64 printable characters")
    limits = [word for word in numbers if not word.startswith(("runs=", "owner="))]
    return ApiKey(
        name, digest, _parse_scopes(i, scopes), _parse_limits(i, limits), runs=_parse_runs(i, runs), owner=owner or ""
    )


def _is_name(text: str) -> bool:
    return text.isprintable() and 0 < len(text) <= 64


def _option(i: int, words: Sequence[str], name: str) -> str | None:
    """Return the value of `NAME=`, if present. Raise `ApiKeysError` for a duplicate."""
    found = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    if len(found) > 1:
        raise ApiKeysError(f"line {i}: {name}= is given twice")
    return found[0] if found else None


def _parse_runs(i: int, text: str | None) -> RunPatterns:
    if text is None:
        return RunPatterns()
    each = text.split(",")
    if not all(0 < len(run) <= 256 and run.isprintable() and "*" not in run[:-1] and run != "*" for run in each):
        raise ApiKeysError(
            f"line {i}: runs must be names separated by commas, without spaces; `name*` means all names that begin so"
        )
    if len(each) > _MAX_RUNS:
        raise ApiKeysError(f"line {i}: {len(each)} runs; the limit of a key is {_MAX_RUNS}")
    prefixes = tuple(run[:-1] for run in each if run.endswith("*"))
    return RunPatterns(frozenset(run for run in each if not run.endswith("*")), prefixes)


def _parse_scopes(i: int, text: str) -> frozenset[str]:
    scopes = frozenset(text.split(","))
    check_scopes(text, f"line {i}: ")
    return scopes


def check_scopes(text: str, where: str = "") -> None:
    """Raise `ApiKeysError` unless the text names scopes. The message has no part of the text, which may be a misplaced key."""
    unknown = [scope for scope in text.split(",") if scope not in SCOPES]
    if unknown:
        hint = next((hint for scope in unknown if (hint := did_you_mean(scope, SCOPES))), "")
        raise ApiKeysError(f"{where}scopes must be of {', '.join(SCOPES)}, separated by commas, without spaces{hint}")


def _parse_limits(i: int, words: list[str]) -> RateLimits:
    found: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = 0.0
        if name in _LIMIT_NAMES and not 0 < found[name] < inf:
            raise ApiKeysError(f"line {i}: {name} must be a number above zero")
        if name not in _LIMIT_NAMES:
            raise ApiKeysError(
                f"line {i}: options are {', '.join(_LIMIT_NAMES)}, each with = and a number above zero, and runs= and owner="
            )
    return RateLimits(**found)


class ApiKeysFile:
    """The keys of a file that may change. `poll` reads it, on a thread; `current` never blocks.

    A readable file determines the valid keys, by `merge_keys` over two consecutive polls: an invalid line gives no key, and an
    empty or missing file means that no key is valid. Only an unreadable file leaves the keys unchanged. `events.on_keys_read` is
    called for every change, with the valid keys; `problem` is an error of the file that lasts for two consecutive polls.
    """

    name = "keys"
    interval_s = 0.5

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
        """Return the keys that are valid now."""
        return self._current

    def poll(self) -> None:
        """Read the file, unless two consecutive polls have read its current state."""
        state = file_state(self._path)
        if self._is_stable and state == self._state:
            return
        self._is_stable, self._state = state == self._state, state
        keys = self._current.keys
        try:
            seen, problem = _read(self._path)
        except ApiKeysError as error:
            problem = f"{error}; the previous keys stay valid"
        else:
            keys, self._last_read = tuple(merge_keys(keys, self._last_read, seen)), seen
        # A run stays reserved for its keys, also while the line that binds it is invalid.
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
    """Read the keys of a file, and the error in it if any. Raise `ApiKeysError` if the file cannot be read."""
    text = _read_text(path)
    if text is None:
        return (), "the file does not exist: no key is valid until it does"
    api_keys, problems = parse_lines(text)
    if problems:
        return api_keys.keys, f"{problems[0]}; invalid lines are ignored ({len(problems)} of them)"
    return api_keys.keys, None if api_keys.keys else "the file has no key: no key is valid"


def read_api_keys(path: Path) -> ApiKeys:
    """Read the keys of a file. Raise `ApiKeysError`."""
    text = _read_text(path)
    if text is None:
        raise ApiKeysError("the file does not exist")
    return parse(text)


def _read_text(path: Path) -> str | None:
    """Read the text of a file; None if it does not exist. Raise `ApiKeysError`."""
    try:
        return decode_text(read_bounded(path, _MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ApiKeysError(f"the file cannot be read: {error_reason(error)}") from None
