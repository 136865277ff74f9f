"""An e-process against drift, slow or fast: has the mean of a number risen above that of a run's start, by more than a band?

The hypothesis is that each prompt's mean, given all earlier ones, is expected at most `band` standard deviations above the start of
the run. The test bets against it: its wealth W is multiplied by 1 + λ (y - δ) for each prompt, where y is the prompt's
standardised mean, clipped to [-c, c], and δ is the band and three standard errors of the start's mean. Under the hypothesis W is
a nonnegative supermartingale for any distribution and any dependence, so by Ville's inequality it ever exceeds 1/α with a
probability of at most α, over a whole run of any length (Waudby-Smith and Ramdas, 2010.09686, section 4).

A judge that wanders is no exploit, so the band grows with how far window means have fallen again so far, which is known before
each bet.

The change may begin at any window: the bets begin at window k with the weight 1/(k (k + 1)), all of which sum to 1, so the
mixture is an e-process too (Shin, Ramdas and Rinaldo, 2203.03532). It costs two numbers for each λ, and the log of the time until
detection. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

BAND: Final = 0.2
"""Default tolerance in standard deviations of prompt means, above the start of the run."""

CLIP: Final = 4.0
"""Standard deviations to which a prompt's mean is clipped."""

STARTS: Final = ((128, 4), (512, 8))
"""Fewest prompts and windows of the starts: with the short one fast growth is seen, with the long one, which is known better,
slow growth."""

_STANDARD_ERRORS: Final = 3.0
"""Standard errors of the start's mean that are added to the band: one start in a thousand is off by more."""
_WANDERS: Final = 4.0
"""The band has at least so many standard deviations of window means that wander, beyond what the spread of prompts explains."""
_BETS: Final = (0.02, 0.05, 0.1, 0.17)
"""λ: shares of the wealth that are bet for each standard deviation. The largest keeps the wealth positive for a δ of up to 1.8."""
_LAG: Final = 16
"""Windows within which a number that wanders falls again."""
_MAX_DELTA: Final = 1.8
_MIN_STD: Final = 0.05
_MAX_WEALTH: Final = 1e100


@dataclass(frozen=True, slots=True)
class DriftStart:
    """The start of a run: mean and standard deviation of the means of its first `n` prompts. `band` and `delta` are in
    such standard deviations.
    """

    mean: float
    std: float
    n: int
    band: float
    delta: float


class DriftTest:
    """The test of one number of one run: a mean of two e-processes, one for each of `STARTS`.

    `band`: tolerance in standard deviations of prompt means.
    """

    def __init__(self, band: float = BAND) -> None:
        self._processes = [_Process(band, *start) for start in STARTS]

    def add_window(self, prompt_means: Sequence[float]) -> None:
        """Add the means of a window's prompts, one number each."""
        if prompt_means:
            for process in self._processes:
                process.add_window(prompt_means)

    @property
    def e_value(self) -> float:
        """Wealth of the bets. Under the hypothesis it ever exceeds x with a probability of at most 1/x."""
        return sum(process.e_value for process in self._processes) / len(self._processes)

    @property
    def start(self) -> DriftStart | None:
        """The longest start that has been learned; None: none yet."""
        return next((p.start for p in reversed(self._processes) if p.start is not None), None)

    @property
    def shift(self) -> float | None:
        """Smoothed mean of the windows (the newest weighs .1) above the start, in standard deviations; None: no start yet."""
        return next((p.shift for p in reversed(self._processes) if p.start is not None), None)

    def restart(self) -> None:
        """Begin to bet again against the same starts, as after an alert has been acknowledged."""
        for process in self._processes:
            process.restart()


class _Process:
    """An e-process that learns a start of at least so many prompts and windows, then bets."""

    def __init__(self, band: float, min_prompts: int, min_windows: int) -> None:
        self._band, self._min_prompts, self._min_windows = band, min_prompts, min_windows
        self._learned: list[list[float]] = []
        self._wander = _Wander()
        self.start: DriftStart | None = None
        self.restart()

    def restart(self) -> None:
        self._wealth = [0.0] * len(_BETS)
        self._n_windows = 0
        self.shift = 0.0

    def add_window(self, prompt_means: Sequence[float]) -> None:
        if self.start is None:
            self._learned.append(list(prompt_means))
            if len(self._learned) >= self._min_windows and sum(map(len, self._learned)) >= self._min_prompts:
                self.start = _start_of(self._learned, self._band)
                self._learned.clear()
            return
        start, n = self.start, self._n_windows + 1
        ys = [_clipped((each - start.mean) / start.std) for each in prompt_means]
        delta = min(_MAX_DELTA, start.delta - start.band + max(start.band, _WANDERS * self._wander.std))
        self._wealth = [
            _after(wealth + 1.0 / (n * (n + 1)), bet, ys, delta)
            for wealth, bet in zip(self._wealth, _BETS, strict=True)
        ]
        self._n_windows = n
        self._wander.add_window(ys)
        self.shift += 0.1 * (sum(ys) / len(ys) - self.shift)

    @property
    def e_value(self) -> float:
        return sum(self._wealth) / len(_BETS) + 1.0 / (self._n_windows + 1)


class _Wander:
    """How far window means fall again within `_LAG` windows, beyond what the spread of prompts explains.

    Only falls count: growth, which is what the test is to see, has none.
    """

    def __init__(self) -> None:
        self._means: deque[tuple[float, int]] = deque(maxlen=_LAG)
        self._n = 0
        self._sum = self._squares = 0.0

    def add_window(self, ys: Sequence[float]) -> None:
        mean = sum(ys) / len(ys)
        if len(self._means) == _LAG:
            before, n = self._means[0]
            fall = max(0.0, before - mean) ** 2 - 0.5 / n - 0.5 / len(ys)
            self._n += 1
            self._sum += fall
            self._squares += fall * fall
        self._means.append((mean, len(ys)))

    @property
    def std(self) -> float:
        """Standard deviation of the wandering: the lower end of its interval."""
        if self._n < _LAG:
            return 0.0
        mean = self._sum / self._n
        error = sqrt(max(0.0, self._squares / self._n - mean * mean) / self._n)
        return sqrt(max(0.0, mean - error))


def _after(wealth: float, bet: float, ys: Iterable[float], delta: float) -> float:
    for y in ys:
        wealth = min(wealth * (1.0 + bet * (y - delta)), _MAX_WEALTH)
    return wealth


def _clipped(y: float) -> float:
    return min(CLIP, max(-CLIP, y))


def _start_of(windows: Sequence[Sequence[float]], band: float) -> DriftStart:
    """The start of a run. The mean is that of clipped numbers, as later ones are clipped too."""
    values = [each for window in windows for each in window]
    n = len(values)
    centre = sum(values) / n
    std = max(_MIN_STD, sqrt(sum((each - centre) ** 2 for each in values) / (n - 1)))
    clipped = [[_clipped((each - centre) / std) for each in window] for window in windows]
    offset = sum(map(sum, clipped)) / n
    between = sum((sum(w) / len(w) - offset) ** 2 for w in clipped) / (len(clipped) - 1)
    within = sum(1.0 / len(w) for w in clipped) / len(clipped)
    wander = sqrt(max(0.0, between - 2.0 * within))
    band = max(band, _WANDERS * wander)
    return DriftStart(centre + offset * std, std, n, band, min(_MAX_DELTA, band + _STANDARD_ERRORS / sqrt(n)))
