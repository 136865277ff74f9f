"""Shows the board what was scored, within a bounded share of a core, and passes on what trips.

Looking at texts costs more than everything else that is done to a small request, so there is an allowance of time: while it
lasts every sample is looked at, beyond it a part of each request is. Knows nothing of HTTP; changes no reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.reward import Reward
from rewardserve.model.scorer import DISTANCE, HeadScores
from rewardserve.model.traits import TOKEN_TRAITS, TRAITS, Lexicon, text_digest, text_traits, token_traits
from rewardserve.service.clock import Clock
from rewardserve.service.errors import RowFailed
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.honeypots import Honeypots
from rewardserve.service.tripwires.incidents import most_severe_first
from rewardserve.service.tripwires.io.audit import AuditJudge
from rewardserve.service.tripwires.io.evidence import EvidenceRecord, EvidenceStore
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.wire import Alert, SampleFeatures

Flags = tuple[str, ...]

_FLAGS = {TRAITS.index(name): name for name in ("judge_injection", "empty_opener", "foreign_script", "control_tokens")}
"""Traits that are worth a flag on the sample itself."""

_SAVINGS_S = 2.0
"""The allowance of so many seconds may be saved up for a burst."""

_FIRST_PRICE_S = 100e-6
_NEWEST = 0.1


class RunContext(NamedTuple):
    """Which training a request belongs to, as far as its caller says. `kl`: of the policy from its start, in nats. `ids`: of
    the samples; None for one without. `owner`: whose key sent it, "" where there are no keys; `is_bound`: that key may send
    certain runs only.
    """

    run: str | None = None
    step: int | None = None
    kl: float | None = None
    ids: Sequence[str | None] = ()
    owner: str = ""
    is_bound: bool = False


class CpuBudget:
    """Seconds of work that may be spent: `share` of those that pass. Starts with its savings."""

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._seconds = share * _SAVINGS_S
        self._at = now
        self._price_s = _FIRST_PRICE_S

    @property
    def is_nothing(self) -> bool:
        """Nothing is to be watched."""
        return self._share <= 0.0

    def affords(self, n: int, now: float) -> int:
        """How many of n samples may be looked at now."""
        self._seconds += self._share * (now - self._at)
        self._at = now
        if self._seconds < self._price_s:
            return n if self._share >= 1.0 else 0
        self._seconds = min(max(self._share * _SAVINGS_S, self._price_s), self._seconds)
        return n if self._share >= 1.0 else min(n, int(self._seconds / self._price_s))

    def spend(self, n: int, seconds: float) -> None:
        """What looking at n samples took."""
        self._seconds -= seconds
        self._price_s += _NEWEST * (seconds / n - self._price_s)


class RunWatcher:
    """Eyes on what one model scores. Board and allowance are those of the whole server, `yardstick` is the model's own.

    `tell` hears of each wire that trips, with the name of the run. `judge` gives a second opinion. `parts_of` says what a
    reward is made of, `texts_of` what is prompt and what is response.
    """

    def __init__(
        self,
        monitor: RunMonitor,
        baseline_source: BaselineSource,
        lexicon: Lexicon,
        clock: Clock,
        tell: Callable[[str, Alert], None],
        *,
        cpu_budget: CpuBudget,
        judge: AuditJudge | None = None,
        honeypots: Honeypots | None = None,
        evidence_store: EvidenceStore | None = None,
        components_of: Callable[[HeadScores], tuple[float, ...]] = lambda _: (),
        texts_of: Callable[[Sample], tuple[str, str]] = Sample.texts,
    ) -> None:
        self.monitor = monitor
        self.baseline_source = baseline_source
        self._lexicon = lexicon
        self._clock = clock
        self._tell = tell
        self._allowance = cpu_budget
        self._judge = judge
        self._baits = honeypots
        self._evidence_store = evidence_store
        self._components_of = components_of
        self._texts_of = texts_of
        self._first = 0

    def begin(self, origin: RunContext) -> None:
        """Samples of this run are about to be scored by this model."""
        if not self._allowance.is_nothing:
            self.monitor.measure(origin.run, self.baseline_source, self._clock.now(), origin.owner)

    def see(
        self, origin: RunContext, rows: Sequence[ScoredRow], rewards: Sequence[Reward | RowFailed]
    ) -> dict[int, Flags] | None:
        """Look at what was scored together, as far as the allowance goes. Flags of samples, by their place."""
        began = self._clock.now()
        if self._judge is not None:
            self._judge.ask(rows, rewards, lambda score, audit: self._hear(origin, score, audit))
        n = self._allowance.affords(len(rows), began)
        self.monitor.n_inspected += n
        self.monitor.n_skipped += len(rows) - n
        if not n:
            return None
        flags: dict[int, Flags] = {}
        seen, records, counted = [], list[EvidenceRecord](), dict[tuple[int, ...], int]()
        for i in self._places(len(rows), n):
            row, reward = rows[i], rewards[i]
            if isinstance(reward, RowFailed):
                continue
            observation = self._observation(origin, row, reward, counted)
            seen.append(observation)
            if any(observation.traits[len(TOKEN_TRAITS) :]) and (own := _flags(observation.traits)):
                flags[i] = own
            if self._evidence_store is not None and observation.evidence:
                records.append(self._evidence_record(origin, row, observation, flags.get(i, ())))
        found = self._observe(origin, seen, began) if seen else []
        self._allowance.spend(n, self._clock.now() - began)
        run = self.monitor.label_of(origin.run, origin.owner)
        if self._evidence_store is not None:
            self._evidence_store.keep(run, records)
        for alert in most_severe_first(found):
            if self._evidence_store is not None:
                self._evidence_store.save(run, alert)
            self._tell(run, alert)
        if self._evidence_store is not None and records:
            self._evidence_store.tidy(run, lambda: self.monitor.named(run))
        return flags

    def _observe(self, origin: RunContext, seen: Sequence[SampleFeatures], now: float) -> list[Alert]:
        return self.monitor.observe(origin.run, origin.step, seen, now, origin.kl, self.baseline_source, origin.owner)

    def _hear(self, origin: RunContext, score: float, audit: float) -> None:
        self.monitor.add_audit(origin.run, score, audit, self._clock.now(), origin.owner)

    def see_ids(self, origin: RunContext, samples: Sequence[Sample | SampleError]) -> None:
        """Look for ids of one step that stand for several samples. Samples without an id of their own have none."""
        if self._allowance.is_nothing or not any(origin.ids):
            return
        named = [
            (hash((origin.step, name)), hash(sample))
            for name, sample in zip(origin.ids, samples, strict=True)
            if name is not None and isinstance(sample, Sample)
        ]
        self.monitor.add_sample_ids(origin.run, named, self._clock.now(), origin.owner)

    def blocked_by(self, origin: RunContext) -> str | None:
        """The wire that has ended the service of this run, if one has."""
        return self.monitor.blocked_by(origin.run, origin.owner, is_bound=origin.is_bound)

    def _evidence_record(
        self, origin: RunContext, row: ScoredRow, observation: SampleFeatures, flags: Flags
    ) -> EvidenceRecord:
        return EvidenceRecord(observation.evidence, origin.step, *self._texts_of(row.sample), observation.value, flags)

    def report(self, run: str, alert: Alert) -> None:
        """Pass on what another found, if it is news."""
        if self.monitor.report(run, alert, self._clock.now()):
            self._tell(run, alert)

    def _places(self, n_rows: int, n: int) -> Sequence[int]:
        """Which are looked at: neighbours, because groups stand together; not always the first."""
        if n >= n_rows:
            return range(n_rows)
        first, self._first = self._first % n_rows, self._first + n
        return [(first + i) % n_rows for i in range(n)]

    def _observation(
        self, origin: RunContext, row: ScoredRow, reward: Reward, counted: dict[tuple[int, ...], int]
    ) -> SampleFeatures:
        prompt, response = self._texts_of(row.sample)
        has_text = bool(prompt or response)
        ids, n_prompt = row.encoded.ids, row.encoded.n_prompt
        its_ids = row.encoded.response
        if its_ids is None and has_text:  # the text begins with the response
            its_ids = ids
        traits = () if its_ids is None else token_traits(its_ids, row.encoded.missing_end)
        if has_text:
            traits += text_traits(prompt, response, self._lexicon)
        digest = text_digest(response) if has_text else None
        group = hash(prompt) if has_text else hash(ids[:n_prompt])
        # Equal rows of one request are no retry of each other: they are told apart by counting.
        nth = counted[ids] = counted.get(ids, 0) + 1
        return SampleFeatures(
            group=group,
            key=None if origin.step is None else hash((origin.step, ids, nth)),
            value=reward.value,
            score=reward.changes[0],
            is_capped=reward.is_capped,
            traits=traits,
            text_digest=digest,
            spread=reward.spread,
            distance=row.heads.get(DISTANCE),
            evidence=evidence(prompt, response) if has_text else "",
            components=self._components_of(row.heads),
            is_honeypot_hit=self._baits.taken(_question(row.sample), response, reward.changes[0])
            if self._baits
            else None,
        )


def evidence(prompt: str, response: str) -> str:
    """What names a sample in an alert: a hash that whoever has the texts can make again.

    The first 16 hexadecimal digits of BLAKE2b (64 bits) of prompt, a zero byte, and response in UTF-8.
    """
    return blake2b(f"{prompt}\0{response}".encode("utf-8", "replace"), digest_size=8).hexdigest()


def _question(sample: Sample) -> str:
    """The last turn of the user, which is what was planted."""
    turns = (sample.messages or ())[:-1] or sample.prompt or ()
    return turns if isinstance(turns, str) else next((m.content for m in reversed(turns) if m.role == "user"), "")


def _flags(traits: Sequence[float]) -> Flags:
    return tuple([flag for at, flag in _FLAGS.items() if traits[at] > 0.0])
