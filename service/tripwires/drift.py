"""An e-process against drift, slow or fast: does the audit judge fall behind what its scores at the run's start let expect?

A judge sees a part of what the model sees, so when responses become better its score rises less than the model's. The expectation
is therefore the straight line through the prompts of the run's start, by least squares: the residual of a prompt is the height of
the line at the mean of its scores, less the mean of the judge's. Responses that only the model pays for raise it.

The hypothesis is that each prompt's residual, given all earlier ones, is expected at most `band` standard deviations above that
of the start. The test bets against it: its wealth W is multiplied by 1 + λ (y - δ) for each prompt, where y is the standardised
residual, clipped to [-c, c], and δ is the band and three standard errors of the line at the scores of the latest windows. Under
the hypothesis W is a nonnegative supermartingale for any distribution and any dependence, so by Ville's inequality it ever exceeds
1/α with a probability of at most α, over a whole run of any length (Waudby-Smith and Ramdas, 2010.09686, section 4).

A judge that wanders is no exploit, so the band grows with how far window means have fallen again so far, which is known before
each bet.

Where the client names tasks, each is compared with its own start: score and judge are taken relative to the task's first prompts,
so a curriculum moves neither. The standard error of the start is then that of a mean over tasks with the shares of the latest
windows, and a task that begins later learns its start first.

The change may begin at any window: the bets begin at window k with the weight 1/(k (k + 1)), all of which sum to 1, so the
mixture is an e-process too (Shin, Ramdas and Rinaldo, 2203.03532). It costs two numbers for each λ, and the log of the time until
detection.

The bet has a bounded error, and is slow, and a dull judge falls behind in healthy runs too. `divergence` is narrower: the score
has risen since the start of the run, and the judge's has fallen. It is a lower bound of three standard errors on means over the
latest prompts; where two errors suspect it already, more prompts are audited, up to a bound, and decide. Pure.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import hypot, sqrt
from typing import Final, NamedTuple

BAND: Final = 0.2
"""Default tolerance in standard deviations of residuals, above the start of the run."""

CLIP: Final = 4.0
"""Standard deviations to which a residual is clipped."""

STARTS: Final = ((128, 4), (512, 8))
"""Fewest prompts and windows of the starts: with the short one fast growth is seen, with the long one, which is known better,
slow growth."""

_STANDARD_ERRORS: Final = 3.0
"""Standard errors of the line that are added to the band: one start in a thousand is off by more."""
_WANDERS: Final = 4.0
"""The band has at least so many standard deviations of window means that wander, beyond what the spread of prompts explains."""
_BETS: Final = (0.02, 0.05, 0.1, 0.17)
"""λ: shares of the wealth that are bet for each standard deviation. The largest keeps the wealth positive for a δ of up to 1.8."""
_LAG: Final = 16
"""Windows within which a number that wanders falls again."""
_FORGOTTEN: Final = 1 / 128
"""Weight that a prompt loses with each later one, in the recent means of score and judge."""
_SUSPECTED_ERRORS: Final = 2.0
"""Standard errors beyond which a divergence is suspected."""
_MOST_SUSPECTED: Final = 512, 0.25
"""Most prompts that are audited while a divergence is suspected: so many, and this part of the others."""
_MIN_RECENT: Final = 64
"""Fewest prompts of recent means."""
_MAX_DELTA: Final = 1.8
_MIN_STD: Final = 0.05
_NEWEST: Final = 0.1
"""Weight of the newest window in smoothed means."""
_MAX_WEALTH: Final = 1e100
_MIN_PROMPTS_OF_TASK: Final = 8
"""Fewest prompts of a task that takes part in the start of a run; a task with fewer learns its own start."""


class PromptMeans(NamedTuple):
    """Means over the audited responses to one prompt in one window, on the calibrated scales of the model and of the judge.

    `task` is the client's name of the prompt's task, "" without one.
    """

    score: float
    audit: float
    task: str = ""


@dataclass(frozen=True, slots=True)
class DriftStart:
    """The start of a run, of `n` prompts: mean and standard deviation of scores, the line `intercept + slope * score` of the
    judge's, and the standard deviation of residuals. `band` is in the latter.
    """

    n: int
    score_mean: float
    score_std: float
    slope: float
    intercept: float
    std: float
    band: float

    def deviations(self, prompt: PromptMeans) -> tuple[float, float]:
        """How far score and judge are above the means of the start, clipped: one prompt must not outweigh the others."""
        audit_mean = self.intercept + self.slope * self.score_mean
        audit_std = hypot(self.slope * self.score_std, self.std)
        deviations = (prompt.score - self.score_mean) / self.score_std, (prompt.audit - audit_mean) / audit_std
        return _clipped(deviations[0]) * self.score_std, _clipped(deviations[1]) * audit_std

    def residual(self, prompt: PromptMeans) -> float:
        """How far the judge is below the line, in standard deviations, clipped."""
        return _clipped((self.intercept + self.slope * prompt.score - prompt.audit) / self.std)

    def delta(self, band: float, score: float, n: float | None = None) -> float:
        """The largest mean residual under the hypothesis, at a mean score. `n`: prompts of a start with other shares of tasks."""
        leverage = hypot(1.0, (score - self.score_mean) / self.score_std)
        return min(_MAX_DELTA, band + _STANDARD_ERRORS * leverage / sqrt(n or self.n))


@dataclass(slots=True)
class DriftTest:
    """The test of one run: a mean of two e-processes, one for each of `STARTS`. All its state is in fields, so it can be stored."""

    _processes: list[_Process] = field(default_factory=lambda: [_Process(BAND, *start) for start in STARTS])
    _n_usual: int = 0
    _n_suspected: int = 0

    def add_window(self, prompts: Sequence[PromptMeans]) -> None:
        """Add the prompts of a window."""
        if prompts:
            if self._is_suspected:
                self._n_suspected += len(prompts)
            else:
                self._n_usual += len(prompts)
            for process in self._processes:
                process.add_window(prompts)

    @property
    def e_value(self) -> float:
        """Wealth of the bets. Under the hypothesis it ever exceeds x with a probability of at most 1/x."""
        return sum(process.e_value for process in self._processes) / len(self._processes)

    @property
    def is_learning(self) -> bool:
        """Whether a start has not been learned yet."""
        return any(process.start is None for process in self._processes)

    @property
    def start(self) -> DriftStart | None:
        """The longest start that has been learned; None: none yet."""
        return next((p.start for p in reversed(self._processes) if p.start is not None), None)

    @property
    def shift(self) -> float | None:
        """How far the judge is below the line in standard deviations, smoothed over windows; None: no start yet."""
        return next((p.shift for p in reversed(self._processes) if p.start is not None), None)

    def divergence(self, n_errors: float = _STANDARD_ERRORS) -> float | None:
        """The lesser of how far the score has surely risen and the judge's has surely fallen since the start, in standard
        deviations of the calibration. None: not enough audited prompts."""
        known = (process.divergence(n_errors) for process in reversed(self._processes) if process.start is not None)
        return next((each for each in known if each is not None), None)

    @property
    def wants_every_prompt(self) -> bool:
        """Whether every prompt is to be audited: the start is being learned, or a divergence is suspected, which more audits
        decide. These are at most `_MOST_SUSPECTED`."""
        n, share = _MOST_SUSPECTED
        return self.is_learning or (self._is_suspected and self._n_suspected < n + share * self._n_usual)

    @property
    def _is_suspected(self) -> bool:
        divergence = self.divergence(_SUSPECTED_ERRORS)
        return divergence is not None and divergence > 0.0

    def forget_recent(self) -> None:
        """Begin the recent means again, as after an alert of the divergence has been acknowledged."""
        for process in self._processes:
            process.forget_recent()

    def restart(self) -> None:
        """Begin to bet again against the same starts, as after an alert has been acknowledged."""
        for process in self._processes:
            process.restart()


@dataclass(slots=True)
class _Task:
    """The start of a task: of `n` prompts, with the means that scores are taken relative to. `share` is of the latest prompts."""

    n: int
    score: float
    audit: float
    share: float = 0.0

    def centred(self, prompt: PromptMeans) -> PromptMeans:
        return PromptMeans(prompt.score - self.score, prompt.audit - self.audit, prompt.task)


@dataclass(slots=True)
class _Wander:
    """How far window means fall again within `_LAG` windows, beyond what the spread of prompts explains.

    Only falls count: growth, which is what the test is to see, has none.
    """

    _means: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=_LAG))
    _n: int = 0
    _sum: float = 0.0
    _squares: float = 0.0

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


@dataclass(slots=True)
class _Recent:
    """Weighted sums over the latest prompts, relative to their tasks: the weight of one falls by 1/128 with each later one."""

    n: float = 0.0
    _squares: float = 0.0
    _score: float = 0.0
    _audit: float = 0.0
    _score_squared: float = 0.0
    _audit_squared: float = 0.0

    def add(self, score: float, audit: float) -> None:
        """Add one prompt."""
        keep = 1.0 - _FORGOTTEN
        self.n = keep * self.n + 1.0
        self._squares = keep * keep * self._squares + 1.0
        self._score = keep * self._score + score
        self._audit = keep * self._audit + audit
        self._score_squared = keep * self._score_squared + score * score
        self._audit_squared = keep * self._audit_squared + audit * audit

    def rise(self, n_start: float, n_errors: float) -> float:
        """Lower bound of the rise of the score, relative to a start of `n_start` prompts."""
        return self._low(self._score / self.n, self._score_squared / self.n, n_start, n_errors)

    def fall(self, n_start: float, n_errors: float) -> float:
        """Lower bound of the fall of the judge's score."""
        return self._low(-self._audit / self.n, self._audit_squared / self.n, n_start, n_errors)

    def _low(self, mean: float, square: float, n_start: float, n_errors: float) -> float:
        n = self.n * self.n / self._squares
        return mean - n_errors * sqrt(max(0.0, square - mean * mean) * (1.0 / n + 1.0 / n_start))


@dataclass(slots=True)
class _Process:
    """An e-process that learns a start of at least so many prompts and windows, then bets."""

    band: float
    min_prompts: int
    min_windows: int
    start: DriftStart | None = None
    shift: float = 0.0
    _learned: list[list[PromptMeans]] = field(default_factory=list)
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _new: dict[str, list[PromptMeans]] = field(default_factory=dict)
    _wander: _Wander = field(default_factory=_Wander)
    _recent: _Recent = field(default_factory=_Recent)
    _score: float = 0.0
    _wealth: list[float] = field(default_factory=lambda: [0.0] * len(_BETS))
    _n_windows: int = 0

    def forget_recent(self) -> None:
        self._recent = _Recent()

    def restart(self) -> None:
        self._wealth = [0.0] * len(_BETS)
        self._n_windows = 0
        self.shift = 0.0

    def add_window(self, prompts: Sequence[PromptMeans]) -> None:
        if self.start is None:
            self._learned.append(list(prompts))
            if len(self._learned) >= self.min_windows and sum(map(len, self._learned)) >= self.min_prompts:
                self._begin()
            return
        known = [self._tasks[p.task].centred(p) for p in prompts if p.task in self._tasks]
        if known:
            self._bet(self.start, known)
        self._learn_tasks(self.start, [p for p in prompts if p.task not in self._tasks])

    def _begin(self) -> None:
        """Learn the start from the prompts so far. One task alone needs no other reference than the line."""
        by_task = _by_task(prompt for window in self._learned for prompt in window)
        is_only = len(by_task) == 1
        for task, prompts in by_task.items():
            if is_only:
                self._tasks[task] = _Task(len(prompts), 0.0, 0.0)
            elif len(prompts) >= _MIN_PROMPTS_OF_TASK:
                self._tasks[task] = _Task(len(prompts), *_means(prompts))
        windows = [
            [self._tasks[p.task].centred(p) for p in window if p.task in self._tasks] for window in self._learned
        ]
        self._learned.clear()
        windows = [window for window in windows if window]
        if len(windows) < self.min_windows:
            self._tasks.clear()
            return
        self.start = _start_of(windows, self.band)
        self._score = self.start.score_mean
        for each in self._tasks.values():
            each.share = each.n / self.start.n

    def _bet(self, start: DriftStart, prompts: Sequence[PromptMeans]) -> None:
        n = self._n_windows + 1
        ys = [start.residual(prompt) for prompt in prompts]
        delta = start.delta(max(start.band, _WANDERS * self._wander.std), self._score, self._n_start)
        self._wealth = [
            _after(wealth + 1.0 / (n * (n + 1)), bet, ys, delta)
            for wealth, bet in zip(self._wealth, _BETS, strict=True)
        ]
        self._n_windows = n
        self._wander.add_window(ys)
        for prompt in prompts:
            self._recent.add(*start.deviations(prompt))
        self._score += _NEWEST * (sum(prompt.score for prompt in prompts) / len(prompts) - self._score)
        self.shift += _NEWEST * (sum(ys) / len(ys) - self.shift)
        counts = Counter(prompt.task for prompt in prompts)
        for task, each in self._tasks.items():
            each.share += _NEWEST * (counts[task] / len(prompts) - each.share)

    def _learn_tasks(self, start: DriftStart, prompts: Sequence[PromptMeans]) -> None:
        """Learn the means of tasks that have begun later: their first prompts are put on the line."""
        for task, of_task in _by_task(prompts).items():
            known = self._new.setdefault(task, [])
            known += of_task
            if 2 * len(known) >= self.min_prompts:
                score, audit = _means(self._new.pop(task))
                on_line = start.intercept + start.slope * start.score_mean
                self._tasks[task] = _Task(len(known), score - start.score_mean, audit - on_line)

    @property
    def _n_start(self) -> float:
        """Prompts of a start of one task whose mean is known as well as that of these tasks in their latest shares."""
        return 1.0 / sum(each.share * each.share / each.n for each in self._tasks.values())

    def divergence(self, n_errors: float = _STANDARD_ERRORS) -> float | None:
        """The lesser of both lower bounds; None: too few prompts."""
        start = self.start
        if start is None or self._recent.n < _MIN_RECENT:
            return None
        n = self._n_start
        wander = max(start.band if start.band > self.band else 0.0, _WANDERS * self._wander.std) * start.std
        return min(self._recent.rise(n, n_errors), self._recent.fall(n, n_errors) - wander)

    @property
    def e_value(self) -> float:
        return sum(self._wealth) / len(_BETS) + 1.0 / (self._n_windows + 1)


def _by_task(prompts: Iterable[PromptMeans]) -> dict[str, list[PromptMeans]]:
    by_task: dict[str, list[PromptMeans]] = {}
    for prompt in prompts:
        by_task.setdefault(prompt.task, []).append(prompt)
    return by_task


def _means(prompts: Sequence[PromptMeans]) -> tuple[float, float]:
    return sum(p.score for p in prompts) / len(prompts), sum(p.audit for p in prompts) / len(prompts)


def _after(wealth: float, bet: float, ys: Iterable[float], delta: float) -> float:
    for y in ys:
        wealth = min(wealth * (1.0 + bet * (y - delta)), _MAX_WEALTH)
    return wealth


def _clipped(y: float) -> float:
    return min(CLIP, max(-CLIP, y))


def _start_of(windows: Sequence[Sequence[PromptMeans]], band: float) -> DriftStart:
    """The line through the prompts of the first windows. Its height is that of clipped residuals, as later ones are clipped too."""
    prompts = [prompt for window in windows for prompt in window]
    n = len(prompts)
    score_mean, audit_mean = sum(p.score for p in prompts) / n, sum(p.audit for p in prompts) / n
    variance = sum((p.score - score_mean) * (p.score - score_mean) for p in prompts) / (
        n - 1
    )  # inf where `**` would raise
    covariance = sum((p.score - score_mean) * (p.audit - audit_mean) for p in prompts) / (n - 1)
    score_std = max(_MIN_STD, sqrt(variance))
    slope = min(1.0, max(0.0, covariance / score_std / score_std))
    intercept = audit_mean - slope * score_mean
    rests = [intercept + slope * p.score - p.audit for p in prompts]
    std = max(_MIN_STD, sqrt(sum(rest * rest for rest in rests) / (n - 1)))
    first = DriftStart(n, score_mean, score_std, slope, intercept, std, band)
    ys = [[first.residual(prompt) for prompt in window] for window in windows]
    offset = sum(map(sum, ys)) / n
    between = sum((sum(each) / len(each) - offset) ** 2 for each in ys) / (len(ys) - 1)
    within = sum(1.0 / len(each) for each in ys) / len(ys)
    wander = sqrt(max(0.0, between - 2.0 * within))
    return replace(first, intercept=intercept - offset * std, band=max(band, _WANDERS * wander))
