"""The state of one run: sums, baseline, alerts and the memory of its samples; and the limits of it.

`windows` counts samples in it, `run_table` decides which runs have one. Pure.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from math import hypot
from typing import NamedTuple

from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource
from rewardserve.service.tripwires.config import VOTES_FOR_A_PAGE
from rewardserve.service.tripwires.drift import DriftTest, PromptMeans
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.prompt_profiles import PromptProfiles
from rewardserve.service.tripwires.run_context import UnnamedClient
from rewardserve.service.tripwires.run_history import RunHistory
from rewardserve.service.tripwires.running_sums import RunningSums
from rewardserve.service.tripwires.statistics import HoneypotHitRate
from rewardserve.service.tripwires.strata import MAX_TASKS, OTHER_TASKS, Stratum, learned_so_far, mixed_baseline


@dataclass(frozen=True, slots=True)
class MonitorLimits:
    """A window has at least `window` samples, of a sixteenth as many prompts, and a run without a baseline learns one from
    `warm_up` windows with an eighth as many prompts as samples; with fewer prompts, each takes up to eight times as long.
    `smoothing` is the weight of the newest window; among audits its least weight, since the start of a run has more of them. A
    run without samples for `ended_s` has ended, so its alerts resolve; after `expiry_s` it is deleted. A run with a baseline and a
    sample within `protected_s` is not evicted for another run of the same owner. `blocks` are wires whose alerts block a run.
    """

    window: int = 128
    smoothing: float = 0.1
    warm_up: int = 4
    votes_for_a_page: int = VOTES_FOR_A_PAGE
    max_runs: int = 32
    expiry_s: float = 86_400.0
    protected_s: float = 3_600.0
    ended_s: float = 1_800.0
    remembered_texts: int = 4_096
    evidence: int = 20
    blocks: frozenset[str] = frozenset()


class WindowSample(NamedTuple):
    """A counted sample of the open window. `stratum` is its key, `duplicate` its kind of duplicate, "" for none."""

    features: SampleFeatures
    stratum: str
    duplicate: str
    is_probing: bool


@dataclass(slots=True)
class ActiveAlert:
    """Alert of a wire, active until it is acknowledged."""

    alert: Alert
    since: float


@dataclass(slots=True)
class Run:
    """The state of one run.

    `strata` are its samples by task, and without tasks by the profiles of their `prompts`. `has_baseline`: wires are evaluated,
    with the strata whose baselines are complete. `baseline` is that of all samples: of the only stratum, or mixed of several;
    `run_wide` has the numbers of no single stratum. `window_audits` are the audited samples of the open window: prompt, and both
    scores; `window_ids` are its ids. `n_skipped` samples were not inspected, for
    want of CPU budget. `n_reports` and `n_looks` count reports of attribution, and looks at prompt relevance, under
    the model. `total` is over rewards of the model of `baseline_source`, since `model_changed_at` where
    another model scored the run before; sums over rewards of the earlier model are in `earlier`. `owner` is the name of the API
    key, "" without keys; `name` is "" for samples without a run, which `client` sends.

    `texts` has the latest prompt of each text, the number of times in a row that it had it, and the latest window.

    All fields but the source are written to the state file (`io.run_records`): a new one needs a default, and a type of builtins,
    tuples and dataclasses, with an `OrderedDict` only as the field itself. Times are monotonic. `revision` grows with each change.
    """

    baseline_source: BaselineSource
    baseline: Baseline
    total: RunningSums
    window_ids: RunningSums
    smooth: RunningSums
    earlier: RunningSums
    strata: dict[str, Stratum] = field(default_factory=dict)
    run_wide: Baseline = field(default_factory=Baseline)
    prompts: PromptProfiles = field(default_factory=PromptProfiles)
    model_changed_at: float | None = None
    window_samples: list[WindowSample] = field(default_factory=list)
    window_prompts: set[int] = field(default_factory=set)
    window_audits: list[tuple[int, PromptMeans]] = field(default_factory=list)
    audit_drift: DriftTest = field(default_factory=DriftTest)
    has_baseline: bool = False
    texts: OrderedDict[int, tuple[int, int, int]] = field(default_factory=OrderedDict)
    keys: OrderedDict[int, None] = field(default_factory=OrderedDict)
    ids: OrderedDict[int, None] = field(default_factory=OrderedDict)
    honeypots: deque[bool] = field(default_factory=lambda: deque(maxlen=HoneypotHitRate.max_answers))
    recent_evidence: deque[str] = field(default_factory=deque)
    wire_evidence: dict[str, deque[str]] = field(default_factory=dict)
    alerts: dict[str, ActiveAlert] = field(default_factory=dict)
    trips: Counter[str] = field(default_factory=Counter)
    statistics: dict[str, float] = field(default_factory=dict)
    attributed: dict[str, float] = field(default_factory=dict)
    n_windows: int = 0
    n_skipped: int = 0
    n_reports: int = 0
    n_looks: int = 0
    step: int | None = None
    kl: float | None = None
    seen_at: float = 0.0
    owner: str = ""
    name: str = ""
    client: UnnamedClient | None = None
    revision: int = 0
    history: RunHistory = field(default_factory=RunHistory)

    @property
    def baseline_key(self) -> str:
        """Key of this run's baseline in the baseline store. Names of API keys contain no space."""
        return f"{self.owner} {self.name}" if self.owner else self.name

    @property
    def has_samples_without_task(self) -> bool:
        """Whether the run ever had samples whose task the client did not name."""
        return any(not each.task for each in self.strata.values())

    @property
    def later_prompts(self) -> list[Stratum]:
        """The strata of prompts that came after the start of the run, whose tasks the client did not name."""
        return [each for each in self.strata.values() if each.profile and each.has_baseline]

    @property
    def is_watched(self) -> bool:
        """Whether its samples are of one run: those of `other` are of several, so a change of their mixture means nothing."""
        return bool(self.owner or self.name or self.client)

    @property
    def window(self) -> RunningSums:
        """Sums of the open window."""
        return sum((each.window for each in self.strata.values()), start=self.window_ids)

    @property
    def compared(self) -> RunningSums:
        """The smoothed sums of the strata whose baselines are complete; of all while none is."""
        sums = [each.smooth for each in self.strata.values() if each.has_baseline]
        return sum(sums[1:], start=sums[0]) if sums and len(self.strata) > 1 else self.smooth

    def growth(self, of: str) -> tuple[float, float] | None:
        """Growth of a mean from the baseline, as of the score, in standard deviations of single samples, and its standard error.

        With several strata, the mean of their growths as the latest samples are distributed over them. None where it is not known,
        and where the baseline is that of a calibration, from which a run may differ from its start on.
        """
        sums = self.compared
        stat, shift = self.baseline.stats.get(of), self.baseline.shift(of, sums.mean(of))
        if stat is None or shift is None or stat.n <= 1.0:
            return None
        return shift, hypot(sums.error(of), stat.error) / stat.std

    @property
    def exported_baseline(self) -> Baseline:
        """The baseline for alert rules, which see the sums of all samples: also of strata that still learn theirs."""
        if len(self.strata) < 2:
            return self.baseline
        return mixed_baseline(learned_so_far(self.strata.values()), self.run_wide)

    @property
    def all_sums(self) -> RunningSums:
        """Sums over all samples, of all models."""
        return self.earlier + self.total + self.window

    @classmethod
    def new(cls, owner: str, name: str, client: UnnamedClient | None, baseline_source: BaselineSource) -> Run:
        """A run without samples, with the baseline that it has learned before, or the one of its model."""
        total, window_ids, smooth, earlier = (
            RunningSums(n_components=len(baseline_source.components)) for _ in range(4)
        )
        run = cls(baseline_source, baseline_source.default, total, window_ids, smooth, earlier)
        run.owner, run.name, run.client = owner, name, client
        run.baseline = baseline_source.baseline_of(run.baseline_key)
        return run

    def stratum_of(self, task: str) -> Stratum:
        """The stratum of a task; without one, of the prompts of the latest window. Beyond `MAX_TASKS` further tasks share that of
        `OTHER_TASKS`.
        """
        if not task and self.prompts.current:
            return self.stratum_of_profile(self.prompts.current)
        found = self.strata.get(task)
        if found is not None:
            return found
        if not task:
            return self.stratum_of_profile(0)
        if task != OTHER_TASKS and sum(bool(each.task) for each in self.strata.values()) >= MAX_TASKS - 1:
            return self.strata.get(OTHER_TASKS) or self.stratum_of(OTHER_TASKS)
        return self._add(
            Stratum.new(task, self.step, self._baseline_of_task(task), len(self.baseline_source.components))
        )

    def stratum_of_profile(self, profile: int) -> Stratum:
        """The stratum of samples without a task, by the profile of their prompts."""
        found = self.strata.get(f"\n{profile}" if profile else "")
        if found is not None:
            return found
        baseline = Baseline() if profile else self.baseline_source.baseline_of(self.baseline_key)
        return self._add(Stratum.new("", self.step, baseline, len(self.baseline_source.components), profile))

    def _add(self, stratum: Stratum) -> Stratum:
        self.strata[stratum.key] = stratum
        return stratum

    def _baseline_of_task(self, task: str) -> Baseline:
        """The baseline that the task has learned before. The baseline of the model is of other prompts."""
        return self.baseline_source.learned(task_key(self.baseline_key, task)) or Baseline()

    def change_model(self, baseline_source: BaselineSource, now: float) -> None:
        """Start a new baseline. Texts, alerts and counters stay; no counter falls."""
        n = len(baseline_source.components)
        all_sums = self.all_sums
        is_same = self.baseline_source.components == baseline_source.components
        self.earlier = all_sums if is_same else all_sums.with_components(n)
        self.total, self.window_ids, self.smooth = (RunningSums(n_components=n) for _ in range(3))
        self.baseline_source, self.baseline = baseline_source, baseline_source.baseline_of(self.baseline_key)
        self.run_wide = Baseline()
        self.prompts = PromptProfiles()
        window = self.window_samples, self.window_prompts, self.window_audits
        for each in (self.strata, self.statistics, *window):
            each.clear()
        self.audit_drift = DriftTest()
        self.attributed.clear()
        self.has_baseline = False
        self.n_windows = self.n_reports = self.n_looks = 0
        if all_sums["samples"]:
            self.model_changed_at = now

    def activate(self, alert: Alert, now: float) -> None:
        """Make an alert active, and count it."""
        self.alerts[alert.wire] = ActiveAlert(alert, now)
        self.trips[alert.wire] += 1

    def restart_statistics(self, wire: str) -> None:
        """Begin the statistics again after this wire was acknowledged: it trips again on later samples only. The baseline stays."""
        self.smooth = RunningSums(n_components=self.smooth.n_components)
        for each in self.strata.values():
            each.smooth = self.smooth
        self.statistics.clear()
        if wire == "audit_drift":
            self.audit_drift.restart()
        elif wire == "prompts_changed":
            self.prompts.n_changes = 0
        elif wire == "divergence":
            self.audit_drift.forget_recent()
        elif wire == "honeypots":
            self.honeypots.clear()
        self.attributed.pop(wire, None)

    def restart_all_statistics(self) -> None:
        """Begin all statistics and the open window again, where what they depend on has changed. Baseline, sums and alerts stay."""
        self.earlier += self.window
        self.window_ids = RunningSums(n_components=self.window_ids.n_components)
        for stratum in self.strata.values():
            stratum.window, stratum.audits = RunningSums(n_components=stratum.window.n_components), None
        for each in (self.window_samples, self.window_prompts, self.window_audits):
            each.clear()
        self.restart_statistics("honeypots")
        self.attributed.clear()
        self.audit_drift = DriftTest()

    def clear_samples(self) -> None:
        """Delete the memory of samples; sums, alerts and counters stay."""
        evidence = self.recent_evidence, self.wire_evidence
        window = self.window_samples, self.window_prompts, self.window_audits
        for each in (*window, self.texts, self.keys, self.ids, self.honeypots, *evidence, self.statistics):
            each.clear()


def task_key(run: str, task: str) -> str:
    """Key of the baseline of a task in the baseline store. Names of runs and tasks are printable, so they contain no line break."""
    return f"{run}\n{task}"
