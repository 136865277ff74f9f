"""Pass the features of scored samples to the run monitor, within a share of a core, and send its alerts.

Text features cost more than the rest of a small request, so they have a CPU budget: while it lasts every sample is inspected,
beyond it a part of each request. Knows nothing of HTTP; changes no reward.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from rewardserve.model.backends import SampleEncoder
from rewardserve.model.conversation import Message, Sample, SampleError
from rewardserve.model.reward import Pipeline, Reward
from rewardserve.model.scorer import DISTANCE
from rewardserve.model.traits import TOKEN_TRAITS, TRAITS, Lexicon, text_digest, text_traits, token_traits
from rewardserve.service.clock import Clock
from rewardserve.service.errors import RowFailed
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.cpu_budget import CpuBudget
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.honeypots import Honeypots
from rewardserve.service.tripwires.incidents import most_severe_first
from rewardserve.service.tripwires.io.alert_sender import AlertSender
from rewardserve.service.tripwires.io.attribution import Attribution
from rewardserve.service.tripwires.io.audit import AuditJudge
from rewardserve.service.tripwires.io.edit_tests import Scores
from rewardserve.service.tripwires.io.evidence import EvidenceRecord, EvidenceStore
from rewardserve.service.tripwires.io.run_texts import KeptSample
from rewardserve.service.tripwires.prompt_profiles import given_text
from rewardserve.service.tripwires.run_context import RunContext
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.wires import FLAGGED_TRAITS

Flags = tuple[str, ...]

_FLAGS = {i: name for i, name in enumerate(TRAITS) if name in FLAGGED_TRAITS}
"""Traits that flag a sample in the reply, by their place."""


class AlertArchive(Protocol):
    """Store of alerts with the texts that explain them."""

    def add_alerts(self, run: str, alerts: Sequence[Alert], kept: Sequence[KeptSample]) -> None:
        """Store alerts, with texts of their run. Never waits."""
        ...


class _Inspected(NamedTuple):
    """The inspected samples of one request: their features, flags by place, texts of prompts by hash, and texts to keep."""

    features: list[SampleFeatures]
    flags: dict[int, Flags]
    prompts: dict[int, str]
    kept: list[KeptSample]
    evidence: list[EvidenceRecord]


class RunWatcher:
    """Watcher of the samples that one model scores. All models share the monitor, the CPU budget and the sender of alerts.

    `baseline_source`, `encoder` and `pipeline` are the model's; `model` has the fields that identify it in an alert. `judge`
    scores some samples too. `attribution` keeps some texts, and `edit_scorer` scores edited responses by the model for it.
    `archive` stores alerts, with these texts.
    """

    def __init__(
        self,
        monitor: RunMonitor,
        baseline_source: BaselineSource,
        lexicon: Lexicon,
        clock: Clock,
        alert_sender: AlertSender,
        *,
        encoder: SampleEncoder,
        pipeline: Pipeline,
        model: Mapping[str, Any],
        cpu_budget: CpuBudget,
        judge: AuditJudge | None = None,
        honeypots: Honeypots | None = None,
        evidence_store: EvidenceStore | None = None,
        attribution: Attribution | None = None,
        edit_scorer: Scores | None = None,
        archive: AlertArchive | None = None,
    ) -> None:
        self.monitor = monitor
        self.baseline_source = baseline_source
        self._lexicon = lexicon
        self._clock = clock
        self._alert_sender = alert_sender
        self._encoder = encoder
        self._combination = pipeline.combination if pipeline.combination.component_names else None
        self._model = model
        self._cpu_budget = cpu_budget
        self._judge = judge
        self._honeypots = honeypots
        self._evidence_store = evidence_store
        self.attribution = attribution
        self._edit_scorer = edit_scorer
        self._archive = archive
        self._first = 0

    @property
    def has_judge(self) -> bool:
        """Whether an audit judge scores some samples too."""
        return self._judge is not None

    def begin_run(self, context: RunContext) -> None:
        """Set this model as the one that scores the samples of this run."""
        if not self._cpu_budget.is_zero:
            self.monitor.set_baseline_source(context.name, self.baseline_source, self._clock.now(), context.owner)

    def inspect(
        self, context: RunContext, rows: Sequence[ScoredRow], rewards: Sequence[Reward | RowFailed]
    ) -> dict[int, Flags] | None:
        """Inspect samples that were scored together, within the CPU budget. Return the flags of samples, by their place."""
        began = self._clock.now()
        if self._judge is not None:
            self._judge.submit(rows, rewards, context.name, context.owner, self.baseline_source)
        n = self._cpu_budget.affords(len(rows), began)
        if n < len(rows):
            self.monitor.add_skipped(context.name, len(rows) - n, context.owner)
        if not n:
            return None
        self.monitor.n_inspected += n
        inspected = self._inspect_places(context, rows, rewards, self._places(len(rows), n))
        alerts = self._observe(context, inspected, began) if inspected.features else []
        if self.attribution is not None and inspected.kept:
            self._keep_texts(context, inspected.kept)
        run = self.monitor.label_of(context.name, context.owner)
        if context.run is None and context.client is not None:
            self._alert_sender.report_unnamed(run, context.client)
        self._raise(run, alerts, inspected.evidence)
        self._cpu_budget.spend(n, self._clock.now() - began)
        return inspected.flags

    def _inspect_places(
        self,
        context: RunContext,
        rows: Sequence[ScoredRow],
        rewards: Sequence[Reward | RowFailed],
        places: Sequence[int],
    ) -> _Inspected:
        inspected = _Inspected([], {}, {}, [], [])
        for i in places:
            row, reward = rows[i], rewards[i]
            if isinstance(reward, RowFailed):
                continue
            features = self._features(context, row, reward)
            inspected.features.append(features)
            if not row.task and features.prompt_hash not in inspected.prompts:
                inspected.prompts[features.prompt_hash] = given_text(row.sample) or self._encoder.first_turns(
                    row.sample
                )
            if self.attribution is not None and features.evidence:
                inspected.kept.append(self._kept_sample(context, row, features))
            if any(features.traits[len(TOKEN_TRAITS) :]) and (flags := _flags(features.traits)):
                inspected.flags[i] = flags
            if self._evidence_store is not None and features.evidence:
                inspected.evidence.append(self._evidence_record(context, row, features, inspected.flags.get(i, ())))
        return inspected

    def _raise(self, run: str, alerts: Collection[Alert], records: Sequence[EvidenceRecord]) -> None:
        """Send the alerts that samples have raised, begin reports on them, and store texts that an alert may name."""
        if self._evidence_store is not None:
            self._evidence_store.add(run, records)
        self._send(run, alerts)
        wires = [alert.wire for alert in alerts if alert.severity != "note"]
        if wires and self.attribution is not None and self._edit_scorer is not None:
            self.attribution.begin_for_alerts(run, wires, self._edit_scorer)
        if self._evidence_store is not None and records and self._evidence_store.is_large(run):
            self._evidence_store.prune(run, self.monitor.evidence_of(run))

    def _observe(self, context: RunContext, inspected: _Inspected, now: float) -> list[Alert]:
        return self.monitor.observe(
            context.name, context.step, inspected.features, now, context.kl, self.baseline_source, context.owner,
            inspected.prompts,
        )  # fmt: skip

    def inspect_ids(self, context: RunContext, samples: Sequence[Sample | SampleError]) -> None:
        """Count ids of one step, and those that stand for several samples. Samples without an id are left out."""
        if self._cpu_budget.is_zero or not any(context.ids):
            return
        began = self._clock.now()
        named = [
            (hash((-1 if context.step is None else context.step, text_hash(name))), text_hash(repr(sample)))
            for name, sample in zip(context.ids, samples, strict=True)
            if name is not None and isinstance(sample, Sample)
        ]
        self.monitor.add_sample_ids(context.name, named, began, context.owner)
        self._cpu_budget.charge(self._clock.now() - began)

    def blocked_by(self, context: RunContext) -> str | None:
        """The wire whose alert blocks this run, if there is one."""
        return self.monitor.blocked_by(context.name, context.owner, is_bound=context.is_bound)

    def _evidence_record(
        self, context: RunContext, row: ScoredRow, features: SampleFeatures, flags: Flags
    ) -> EvidenceRecord:
        return EvidenceRecord(features.evidence, context.step, *self._encoder.texts(row.sample), features.reward, flags)

    def _kept_sample(self, context: RunContext, row: ScoredRow, features: SampleFeatures) -> KeptSample:
        prompt, response = self._encoder.texts(row.sample)
        turn = _last_user_turn(row.sample)
        turns = row.sample.prompt if row.sample.messages is None else row.sample.messages[:-1]
        system = "" if not turn or isinstance(turns, str | None) else _system_turns(turns)
        observed = ObservedSample(
            turn or prompt,
            response,
            features.prompt_hash,
            features.score,
            step=context.step,
            task=features.task,
            system=system,
        )
        return KeptSample.of(observed, hash(row.encoded.ids), turns, missing_end=row.encoded.missing_end)

    def _keep_texts(self, context: RunContext, kept: Sequence[KeptSample]) -> None:
        """Keep texts for attribution, unless another model has the run by now."""
        assert self.attribution is not None
        runs, label = self.monitor.runs, self.monitor.label_of(context.name, context.owner)
        if runs[label].baseline_source is self.baseline_source:
            self.attribution.texts.add(runs, label, kept)
            if self._edit_scorer is not None:
                self.attribution.begin_if_due(label, self._edit_scorer, self)

    def add_attributed(self, label: str, statistics: Mapping[str, float]) -> list[str]:
        """Evaluate the wires on the statistics of a report of attribution, and send their alerts. Return the wires that are new."""
        alerts = self.monitor.add_attributed(label, statistics, self._clock.now(), self.baseline_source)
        self._send(label, alerts)
        return [alert.wire for alert in alerts if alert.severity != "note"]

    def _send(self, run: str, alerts: Collection[Alert]) -> None:
        if self._archive is not None and alerts:
            kept: list[KeptSample] = []
            if self.attribution is not None and any(alert.severity != "note" for alert in alerts):
                kept = [*self.attribution.texts.early(run), *self.attribution.texts.recent(run)]
            self._archive.add_alerts(run, most_severe_first(alerts), kept)
        for alert in most_severe_first(alerts):
            if self._evidence_store is not None:
                self._evidence_store.save(run, alert)
            self._alert_sender.send(run, alert, self._model)

    def report(self, run: str, alert: Alert) -> None:
        """Raise an alert about a reserved label, if it is not active already."""
        if self.monitor.report(run, alert, self._clock.now()):
            if self._archive is not None:
                self._archive.add_alerts(run, [alert], [])
            self._alert_sender.send(run, alert, self._model)

    def _places(self, n_rows: int, n: int) -> Sequence[int]:
        """Indices of the samples to inspect: neighbours, because groups are contiguous; not always the first."""
        if n >= n_rows:
            return range(n_rows)
        first, self._first = self._first % n_rows, self._first + n
        return [(first + i) % n_rows for i in range(n)]

    def _features(self, context: RunContext, row: ScoredRow, reward: Reward) -> SampleFeatures:
        prompt, response = self._encoder.texts(row.sample)
        has_text = bool(prompt or response)
        ids, n_prompt = row.encoded.ids, row.encoded.n_prompt
        response_ids = row.encoded.response
        if response_ids is None and has_text:  # the text begins with the response
            response_ids = ids
        traits = () if response_ids is None else token_traits(response_ids, row.encoded.missing_end)
        if has_text:
            traits += text_traits(prompt, response, self._lexicon)
        digest = text_digest(response) if has_text else None
        prompt_hash = text_hash(prompt) if has_text else hash(ids[:n_prompt] or ids)
        return SampleFeatures(
            prompt_hash=prompt_hash,
            retry_key=None if row.id is None or context.step is None else hash((context.step, text_hash(row.id), ids)),
            reward=reward.value,
            score=reward.score,
            is_capped=reward.is_capped,
            traits=traits,
            text_digest=digest,
            spread=reward.spread,
            distance=row.heads.get(DISTANCE),
            evidence=evidence(prompt, response) if has_text else "",
            components=self._combination.components(row.heads) if self._combination is not None else (),
            is_honeypot_hit=self._honeypots.is_hit(_last_user_turn(row.sample), response, reward.changes[0])
            if self._honeypots
            else None,
            task=row.task,
        )


def text_hash(text: str) -> int:
    """64-bit hash of a text, the same in every process: `hash` of a text is another one after a restart, that of numbers is not."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def evidence(prompt: str, response: str) -> str:
    """The hash that names a sample in an alert; it can be computed again from the texts.

    The first 16 hexadecimal digits of BLAKE2b (64 bits) of prompt, a zero byte, and response in UTF-8.
    """
    return blake2b(f"{prompt}\0{response}".encode("utf-8", "replace"), digest_size=8).hexdigest()


def _last_user_turn(sample: Sample) -> str:
    """The last turn of the user, which is matched with the honeypots."""
    turns = (sample.messages or ())[:-1] or sample.prompt or ()
    return turns if isinstance(turns, str) else next((m.content for m in reversed(turns) if m.role == "user"), "")


def _system_turns(turns: Sequence[Message]) -> str:
    return "\n".join([turn.content for turn in turns if turn.role == "system"])


def _flags(traits: Sequence[float]) -> Flags:
    return tuple([flag for at, flag in _FLAGS.items() if traits[at] > 0.0])
