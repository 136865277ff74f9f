"""Tell whether the prompts of a run have changed, by features of the prompts alone: no response has a part in it.

Each profile is a distribution of prompts, for which the run learns a baseline. A window belongs to the profile of the one before,
else to the most similar one, as long as the difference is within chance; otherwise a new profile begins. Compared are the means of
`FEATURES` over the prompts of the latest windows with those of all windows before, by the largest difference, at a level that holds
for the whole run (`looks`). A mix of sources whose shares vary from window to window is one distribution.

Only the turns before the first response of a conversation are read: later ones depend on the policy. The number of profiles is
bounded, so a run whose prompts never stop changing is compared with the most similar profile in the end. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import log
from typing import Final, NamedTuple
from zlib import crc32

from rewardserve.model.conversation import Sample
from rewardserve.service.tripwires.hashing import spread
from rewardserve.service.tripwires.looks import critical_z

MAX_PROFILES: Final = 8
"""Profiles of a run, the first one included."""

MAX_PROMPTS: Final = 80
"""Prompts of a window that are kept: of more, a half by a hash, then a quarter, because a trainer may sort a step."""

MIN_PROMPTS: Final = 4
"""Fewest prompts of a window that can show a change."""

MIN_EFFECT: Final = 0.04
"""The square of a difference, in standard deviations of prompts, from which responses may change by a threshold of a wire."""

LENGTHS: Final = (1, 2, 4, 8, 16, 32)
"""Numbers of the latest windows that are compared, together, with those before them."""

_FEW: Final = 8.0
"""Prompts with which a squared difference exceeds chance twice as far: their features are not normal."""

_HEAD, _TAIL = 200, 60
"""Characters of a long prompt that are read."""
_NUMBER: Final = re.compile(rb"\b[A-Za-z]*+[0-9][0-9A-Za-z]*+")
_CLASSES: Final = {
    "digits": b"0123456789",
    "capitals": bytes(range(65, 91)),
    "symbols": b"{}()[]<>=_`\\/#*|&+$@%^~;",
    "punctuation": b".,:!?\"'-",
    "vowels": b"aeiou",
    "rare letters": b"bjkqvwxyz",
}
"""Classes of bytes, of which a prompt has shares."""
_MAX_SHARES: Final = tuple(1.0 if name == "vowels" else 0.12 for name in _CLASSES)
"""Shares of a class that count as this: one prompt in capitals alone is no change of the others."""

_N_FIRST_WORDS = 8
_FIRST_WORDS = tuple(tuple(float(i == k) for i in range(_N_FIRST_WORDS)) for k in range(_N_FIRST_WORDS))
_N_SYSTEM_BITS = 8
_SYSTEM_END = "\x1e"
"""Character after the system turns of a text: a record separator, which text does not have."""
_NUMBERS = ("length", "lines", "question", "spaces", "bytes a character")
FEATURES: Final = (
    *_NUMBERS,
    *_CLASSES,
    *(f"first word {i}" for i in range(_N_FIRST_WORDS)),
    *(f"system turn {i}" for i in range(_N_SYSTEM_BITS)),
)
_MIN_STD = {"length": 0.2, "lines": 0.2, "question": 0.1, "bytes a character": 0.05} | dict.fromkeys(
    ("spaces", *_CLASSES), 0.01
)
_MIN_VARIANCE = tuple(_MIN_STD.get(name, 0.1) ** 2 for name in FEATURES)


def given_text(sample: Sample) -> str:
    """The turns before the first response of a conversation, system turns marked; "" where they are not known by themselves."""
    turns = sample.prompt if sample.messages is None else sample.messages[:-1]
    if isinstance(turns, str):
        return turns
    given: list[str] = []
    for turn in turns or ():
        if turn.role not in ("system", "user"):
            break
        given.append(turn.content + _SYSTEM_END * (turn.role == "system"))
    return "\n".join(given)


def prompt_features(text: str) -> tuple[float, ...]:
    """`FEATURES` of a text, whose numbers and ids have one digit each: logarithms of length and lines, whether it asks, shares of
    classes of bytes, the first word hashed, and bits of a hash of the system turns, which may change in words alone."""
    system, end, _ = text.rpartition(_SYSTEM_END)
    bits = crc32(_NUMBER.sub(b"0", system.encode("utf-8", "replace"))) if end else 0
    read = text if len(text) <= _HEAD + _TAIL else text[:_HEAD] + text[-_TAIL:]
    whole = read.encode("utf-8", "replace")
    content = _NUMBER.sub(b"0", whole)
    n = len(content) or 1
    words = content.split(None, 1)
    first = crc32(words[0].lower()) % _N_FIRST_WORDS if words else 0
    shares = [
        min(most, (n - len(content.translate(None, of_class))) / n)
        for of_class, most in zip(_CLASSES.values(), _MAX_SHARES, strict=True)
    ]
    return (
        log(1 + len(text) - len(whole) + len(content)),
        log(1 + text.count("\n")),
        float("?" in read),
        read.count(" ") / n,
        len(whole) / (len(read) or 1),
        *shares,
        *_FIRST_WORDS[first],
        *(float(bits >> i & 1) for i in range(_N_SYSTEM_BITS)),
    )


class FeatureSums(NamedTuple):
    """Sums of the features over `n` prompts, and of their squared deviations from the means of their windows."""

    n: float
    sums: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[float]]) -> FeatureSums:
        """Those of the prompts of a window."""
        n, columns = len(prompts), list(zip(*prompts, strict=True))
        sums = tuple([sum(column) for column in columns])
        squares = [sum([x * x for x in column]) for column in columns]
        deviations = [max(0.0, square - each * each / n) for square, each in zip(squares, sums, strict=True)]
        return cls(n, sums, tuple(deviations))

    def plus(self, other: FeatureSums, sign: float = 1.0) -> FeatureSums:
        """Those of both together; with `sign` -1 those that are left without the other."""
        sums = tuple([a + sign * b for a, b in zip(self.sums, other.sums, strict=True)])
        deviations = tuple([a + sign * b for a, b in zip(self.deviations, other.deviations, strict=True)])
        return FeatureSums(self.n + sign * other.n, sums, deviations)

    def differences(self, other: FeatureSums) -> list[float]:
        """The square of the difference of means of each feature, on the scale of a variance of prompts."""
        n, m = self.n, other.n
        times = n * m / (n + m)
        return [(x / n - y / m) * (x / n - y / m) * times for x, y in zip(self.sums, other.sums, strict=True)]

    def variances(self, other: FeatureSums) -> list[float]:
        """The variance of each feature within windows, of both together."""
        n, columns = self.n + other.n, zip(self.deviations, other.deviations, _MIN_VARIANCE, strict=True)
        return [max(least, (u + v) / n) for u, v, least in columns]


@dataclass(slots=True)
class PromptProfile:
    """A distribution of prompts: the sums of its `n_windows` windows, of which the latest are `recent`. The first `n_learned` ones
    are those until the baseline of its responses was complete; by then the run had named `n_tasks` tasks.

    `jumps` are the `differences` of successive windows, added up over `n_jumps`: in a shuffled run each is as large as the variance
    of prompts, and larger where the mix of sources varies by more than that.
    """

    total: FeatureSums | None = None
    recent: list[FeatureSums] = field(default_factory=list)
    n_windows: int = 0
    n_learned: int = 0
    jumps: list[float] = field(default_factory=lambda: [0.0] * len(FEATURES))
    n_jumps: int = 0
    n_restarts: int = 0
    n_tasks: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether the baseline of its responses is complete."""
        return self.n_learned > 0

    def add(self, window: FeatureSums) -> None:
        """Add a window that belongs to this profile."""
        if self.recent:
            self.jumps = [a + b for a, b in zip(self.jumps, window.differences(self.recent[-1]), strict=True)]
            self.n_jumps += 1
        self.n_windows += 1
        self.total = window if self.total is None else self.total.plus(window)
        self.recent = [*self.recent[1 - LENGTHS[-1] :], window]

    def distance(self, window: FeatureSums) -> float:
        """The largest squared difference of a feature from all windows, in standard errors."""
        return 0.0 if self.total is None else _largest(self.total, window, self.jumps, self.n_jumps)

    def is_like(self, window: FeatureSums, n_looks: int) -> bool:
        """Whether the difference is within chance at look number `n_looks` of the run."""
        return self.total is None or self.distance(window) <= max_chance(n_looks, self.total.n, window.n)

    def has_changed(self, n_looks: int) -> bool:
        """Whether some of the latest windows together are unlike those before them."""
        if self.total is None or not self.is_complete:
            return False
        most, latest, n = min(len(self.recent), self.n_windows - self.n_learned), self.recent[-1], 1
        for length in LENGTHS[1:]:
            if length > most:
                break
            while n < length:
                n += 1
                latest = latest.plus(self.recent[-n])
            before = self.total.plus(latest, -1.0)
            chance = max_chance(n_looks, before.n, latest.n)
            if _largest(before, latest) > chance and _largest(before, latest, *self._jumps_before(length)) > chance:
                return True
        return False

    def _jumps_before(self, n_windows: int) -> tuple[list[float], int]:
        """The jumps but those to the latest windows: these are no evidence of how far the mix varied before."""
        jumps, windows = self.jumps, self.recent[-n_windows - 1 :]
        for old, new in pairwise(windows):
            jumps = [a - b for a, b in zip(jumps, new.differences(old), strict=True)]
        return jumps, self.n_jumps - len(windows) + 1

    def restart(self) -> None:
        """Forget the windows so far: the first one had prompts of before the change too."""
        self.total, self.recent, self.n_windows = None, [], 0
        self.n_restarts += 1


def _largest(before: FeatureSums, latest: FeatureSums, jumps: Sequence[float] = (), n_jumps: int = 0) -> float:
    """The largest squared difference of a feature in standard errors, which are larger where windows differ by more than their
    prompts let expect: all as much as those of the feature in which they do so most.
    """
    variances = before.variances(latest)
    largest = max([a / b for a, b in zip(before.differences(latest), variances, strict=True)])
    ratios = [a / (n_jumps * b) for a, b in zip(jumps, variances, strict=True)] if n_jumps > 0 else []
    return largest / max([1.0, *ratios])


def max_chance(n_looks: int, n_before: float, n_latest: float) -> float:
    """The largest squared difference, in standard errors, that chance explains at look number `n_looks` of a run, or that is too
    small to matter.
    """
    by_chance = critical_z(n_looks, len(LENGTHS) * len(FEATURES)) ** 2 * (1.0 + (_FEW / min(n_before, n_latest)) ** 2)
    return max(by_chance, MIN_EFFECT / (1.0 / n_before + 1.0 / n_latest))


@dataclass(slots=True)
class PromptProfiles:
    """The profiles of one run. `current` is that of the latest window, `n_changes` counts the new ones. `window` has the features
    of prompts of the open window, by hash, of which one in 2**`n_halvings` is kept. `has_restarted`: the current profile has begun
    again with the latest window.
    """

    profiles: list[PromptProfile] = field(default_factory=lambda: [PromptProfile()])
    current: int = 0
    n_changes: int = 0
    n_looks: int = 0
    n_halvings: int = 0
    has_restarted: bool = False
    window: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def add(self, prompt_hash: int, text: str) -> None:
        """Read the text of a prompt that the open window does not have yet."""
        if not text or not self._is_kept(prompt_hash):
            return
        self.window[prompt_hash] = prompt_features(text)
        if len(self.window) > MAX_PROMPTS:
            self.n_halvings += 1
            self.window = {key: features for key, features in self.window.items() if self._is_kept(key)}

    def _is_kept(self, prompt_hash: int) -> bool:
        """Whether a prompt is of the part that the open window keeps, another one in each window."""
        return not spread(prompt_hash + self.n_looks) >> (64 - self.n_halvings)

    def close_window(self, n_tasks: int = 0) -> int:
        """The profile of the prompts of the open window, which becomes the current one. A new window opens. `n_tasks` are named by
        the run: where tasks have been named since, their prompts are missing here, and nothing need have changed.
        """
        prompts, self.n_halvings, self.has_restarted = [*self.window.values()], 0, False
        self.window.clear()
        if len(prompts) >= MIN_PROMPTS:
            self.n_looks += 1
            window = FeatureSums.of(prompts)
            self.current = self._profile_of(window, n_tasks)
            profile = self.profiles[self.current]
            profile.add(window)
            if not profile.is_complete:
                profile.n_tasks = n_tasks
        return self.current

    def complete(self, profile: int) -> None:
        """Freeze a profile: the baseline of its responses is complete."""
        self.profiles[profile].n_learned = max(1, self.profiles[profile].n_windows)

    def _profile_of(self, window: FeatureSums, n_tasks: int) -> int:
        known, n = self.profiles[self.current], self.n_looks
        if not self.profiles[0].is_complete:  # the first baseline is of all prompts of the warm-up
            return 0
        if not known.n_windows or (known.is_like(window, n) and not known.has_changed(n)):
            return self.current
        others = [i for i, each in enumerate(self.profiles) if each.n_windows and i != self.current]
        others.sort(key=lambda i: self.profiles[i].distance(window))
        if others and self.profiles[others[0]].is_like(window, n) and not self.profiles[others[0]].has_changed(n):
            return others[0]
        if not known.is_complete:
            if known.n_restarts == 0:
                known.restart()
                self.has_restarted = True
            return self.current
        if len(self.profiles) < MAX_PROFILES:
            self.profiles.append(PromptProfile(jumps=[*known.jumps], n_jumps=known.n_jumps))
            self.n_changes += n_tasks <= known.n_tasks
            return len(self.profiles) - 1
        return min(range(len(self.profiles)), key=lambda i: self.profiles[i].distance(window))
