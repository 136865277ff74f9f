"""Tell whether the prompts of a run have changed, by features of the prompts alone: no response has a part in it.

Each profile is a distribution of prompts, for which the run learns a baseline. A window belongs to the profile of the one before,
else to the most similar one, as long as the difference is within chance; otherwise a new profile begins. Compared are the means of
`FEATURES` over the prompts of the window, and those of the latest windows together, which show slow change. The variance of a mean
is that of prompts and that of windows: a run whose batches alternate between sources from the start has one profile.

Only the turns before the first response of a conversation are read: later ones depend on the policy. The number of profiles is
bounded, so a run whose prompts never stop changing is compared with the most similar profile in the end. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Final
from zlib import crc32

from rewardserve.model.conversation import Sample

MAX_PROFILES: Final = 8
"""Profiles of a run, the first one included."""

MAX_PROMPTS: Final = 64
"""Prompts of a window that are read: the first ones."""

MIN_PROMPTS: Final = 4
"""Fewest prompts of a window that can show a change."""

MAX_CHANCE: Final = 110.0
"""Sum of the squares of differences in standard errors that chance explains; `len(FEATURES)` are expected."""

MIN_EFFECT: Final = 1.0
"""Sum of the squares of differences in standard deviations of prompts from which responses may change by a threshold of a wire."""

_FEW: Final = 8.0
"""Prompts with which the sum exceeds chance twice as far: their features are not normal."""
_HEAD, _TAIL = 200, 60
"""Characters of a long prompt that are read."""
_NUMBER: Final = re.compile(rb"[0-9]+")
_CLASSES: Final = {
    "digits": b"0123456789",
    "capitals": bytes(range(65, 91)),
    "symbols": b"{}()[]<>=_`\\/#*|&+$@%^~;",
    "punctuation": b".,:!?\"'-",
    "vowels": b"aeiou",
    "rare letters": b"bjkqvwxyz",
}
"""Classes of bytes, of which a prompt has shares."""

_N_FIRST_WORDS = 8
_FIRST_WORDS = tuple(tuple(float(i == k) for i in range(_N_FIRST_WORDS)) for k in range(_N_FIRST_WORDS))
_NUMBERS = ("length", "lines", "question", "spaces", "bytes a character")
FEATURES: Final = (*_NUMBERS, *_CLASSES, *(f"first word {i}" for i in range(_N_FIRST_WORDS)))
_MIN_STD = {"length": 0.2, "lines": 0.2, "question": 0.1, "bytes a character": 0.05} | dict.fromkeys(
    ("spaces", *_CLASSES), 0.01
)
_MIN_VARIANCE = tuple(_MIN_STD.get(name, 0.1) ** 2 for name in FEATURES)
_NEWEST: Final = 0.1
"""Weight of the newest window in smoothed means."""


def given_text(sample: Sample) -> str:
    """The turns before the first response of a conversation; "" where they are not known apart from later ones."""
    turns = sample.prompt if sample.messages is None else sample.messages[:-1]
    if isinstance(turns, str):
        return turns
    given: list[str] = []
    for turn in turns or ():
        if turn.role not in ("system", "user"):
            break
        given.append(turn.content)
    return "\n".join(given)


def prompt_features(text: str) -> tuple[float, ...]:
    """`FEATURES` of a text, whose numbers have one digit each: logarithms of length and lines, whether it asks, shares of classes
    of bytes, the first word hashed."""
    read = text if len(text) <= _HEAD + _TAIL else text[:_HEAD] + text[-_TAIL:]
    whole = read.encode("utf-8", "replace")
    content = _NUMBER.sub(b"0", whole)
    n = len(content) or 1
    words = read.split(None, 1)
    first = crc32(words[0].lower().encode("utf-8", "replace")) % _N_FIRST_WORDS if words else 0
    shares = [(n - len(content.translate(None, of_class))) / n for of_class in _CLASSES.values()]
    return (
        log(1 + len(text) - len(whole) + len(content)),
        log(1 + text.count("\n")),
        float("?" in read),
        read.count(" ") / n,
        len(whole) / (len(read) or 1),
        *shares,
        *_FIRST_WORDS[first],
    )


@dataclass(slots=True)
class FeatureMeans:
    """Means and variances of the features over `n` prompts."""

    n: float
    means: list[float]
    variances: list[float]

    @classmethod
    def of(cls, prompts: Sequence[Sequence[float]]) -> FeatureMeans:
        """Those of single prompts."""
        n = len(prompts)
        columns = list(zip(*prompts, strict=True))
        means = [sum(column) / n for column in columns]
        squares = [sum([x * x for x in column]) / n for column in columns]
        return cls(n, means, [max(0.0, square - mean * mean) for square, mean in zip(squares, means, strict=True)])


@dataclass(slots=True)
class PromptProfile:
    """A distribution of prompts. `learned` are its first windows, until `is_complete`; `recent` is smoothed over all windows, with
    the effective number of its prompts.

    Of the learned windows together: `n` prompts, `means`, the variance `within` windows, and that `between` their means beyond it.
    """

    learned: list[FeatureMeans] = field(default_factory=list)
    recent: FeatureMeans | None = None
    is_complete: bool = False
    n_restarts: int = 0
    n: float = 0.0
    means: list[float] = field(default_factory=list)
    within: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def add(self, window: FeatureMeans) -> None:
        """Add a window that belongs to this profile."""
        if not self.is_complete:
            self.learned.append(window)
            self._learn()
        if self.recent is None:
            self.recent = window
            return
        self.recent = FeatureMeans(
            min(self.recent.n + window.n, window.n * (2.0 - _NEWEST) / _NEWEST),
            [old + _NEWEST * (new - old) for old, new in zip(self.recent.means, window.means, strict=True)],
            window.variances,
        )

    def _learn(self) -> None:
        n, n_windows = sum(each.n for each in self.learned), len(self.learned)
        self.n, self.means, self.within, self.between = n, [], [], []
        for i, least in enumerate(_MIN_VARIANCE):
            mean = sum([each.n * each.means[i] for each in self.learned]) / n
            within = max(least, sum([each.n * each.variances[i] for each in self.learned]) / n)
            squares = sum([(each.means[i] - mean) * (each.means[i] - mean) for each in self.learned])
            beyond = squares / (n_windows - 1) - within * n_windows / n if n_windows > 1 else 0.0
            self.means.append(mean)
            self.within.append(within)
            self.between.append(max(0.0, beyond) * (1.0 + 1.0 / n_windows))

    def distance(self, window: FeatureMeans) -> float:
        """How far the means are apart in standard errors: the sum of the squares of the differences."""
        times = 1.0 / self.n + 1.0 / window.n
        columns = zip(window.means, self.means, self.within, self.between, strict=True)
        return sum([(new - old) * (new - old) / (within * times + between) for new, old, within, between in columns])

    def is_like(self, window: FeatureMeans) -> bool:
        """Whether the difference is within chance, which is larger with few prompts, or too small to change responses."""
        distance = self.distance(window)
        effect = (distance - len(FEATURES)) * (1.0 / self.n + 1.0 / window.n)
        return distance <= MAX_CHANCE * (1.0 + _FEW / window.n) or effect <= MIN_EFFECT

    @property
    def has_drifted(self) -> bool:
        """Whether the latest windows together are unlike the first ones."""
        return self.is_complete and self.recent is not None and not self.is_like(self.recent)

    def restart(self) -> None:
        """Forget the windows so far: the first one had prompts of before the change too."""
        self.learned.clear()
        self.n = 0.0
        self.recent = None
        self.n_restarts += 1


@dataclass(slots=True)
class PromptProfiles:
    """The profiles of one run. `current` is that of the latest window, `n_changes` counts the new ones. `window` has the features
    of prompts of the open window, by hash.
    """

    profiles: list[PromptProfile] = field(default_factory=lambda: [PromptProfile()])
    current: int = 0
    n_changes: int = 0
    window: dict[int, tuple[float, ...]] = field(default_factory=dict)

    def add(self, prompt_hash: int, text: str) -> None:
        """Read the text of a prompt that the open window does not have yet."""
        if text and len(self.window) < MAX_PROMPTS:
            self.window[prompt_hash] = prompt_features(text)

    def close_window(self) -> int:
        """The profile of the prompts of the open window, which becomes the current one. A new window opens."""
        prompts = [*self.window.values()]
        self.window.clear()
        if len(prompts) >= MIN_PROMPTS:
            window = FeatureMeans.of(prompts)
            self.current = self._profile_of(window)
            self.profiles[self.current].add(window)
        return self.current

    def complete(self, profile: int) -> None:
        """Freeze a profile: the baseline of its responses is complete."""
        self.profiles[profile].is_complete = True

    def _profile_of(self, window: FeatureMeans) -> int:
        known = self.profiles[self.current]
        if not self.profiles[0].is_complete:  # the first baseline is of all prompts of the warm-up
            return 0
        if not known.learned or (known.is_like(window) and not known.has_drifted):
            return self.current
        others = [i for i, each in enumerate(self.profiles) if each.learned and i != self.current]
        others.sort(key=lambda i: self.profiles[i].distance(window))
        if others and self.profiles[others[0]].is_like(window) and not self.profiles[others[0]].has_drifted:
            return others[0]
        if not known.is_complete:
            if known.n_restarts == 0:
                known.restart()
            return self.current
        if len(self.profiles) < MAX_PROFILES:
            self.profiles.append(PromptProfile())
            self.n_changes += 1
            return len(self.profiles) - 1
        return min(range(len(self.profiles)), key=lambda i: self.profiles[i].distance(window))
