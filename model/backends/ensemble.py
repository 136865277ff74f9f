"""Several models as one: every row is encoded once and scored by each member.

The heads of a member are named `member/head`. Members must read the same ids for the same sample, so the clauses of their
contracts that decide the ids must be equal. The combination of scores is `reward.members`'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rewardserve.model.backends import Identity, LoadedModel, LoadError
from rewardserve.model.contract import ContractReport, ScoringContract
from rewardserve.model.reward import EnsembleMember
from rewardserve.model.reward.checkpoint_members import head_name
from rewardserve.model.scorer import DISTANCE, BatchScores, HeadScores, Scorer, TokenBatch

_ENCODING_CLAUSES = (
    "template_digest",
    "template_date",
    "tokenizer_digest",
    "bos_id",
    "end_ids",
    "template_tail",
    "ending",
    "skip_id",
    "tokenizes",
    "truncation",
    "max_tokens",
)
"""Clauses that decide the ids of a sample; `max_tokens` decides where a prompt is cut."""


class EnsembleScorer:
    """Score every row with one member after the other. A row has the heads of all members and the mean of their distances."""

    def __init__(self, members: Sequence[tuple[str, Scorer]]) -> None:
        self._members = tuple(members)
        self._scorers = [scorer for _, scorer in members]

    @property
    def max_tokens(self) -> int:
        """The smallest limit of the members."""
        return min(scorer.max_tokens for scorer in self._scorers)

    @property
    def pads_rows(self) -> bool:
        """Whether a member pads: members run one after the other, and the largest batch in memory counts."""
        return any(scorer.pads_rows for scorer in self._scorers)

    @property
    def shares_prefixes(self) -> bool:
        """Whether all members share prefixes."""
        return all(scorer.shares_prefixes for scorer in self._scorers)

    @property
    def concurrency(self) -> int:
        """The smallest concurrency of the members."""
        return min(scorer.concurrency for scorer in self._scorers)

    @property
    def streams(self) -> bool:
        """Whether all members stream."""
        return all(scorer.streams for scorer in self._scorers)

    @property
    def is_alive(self) -> bool:
        """Whether all members are alive."""
        return all(scorer.is_alive for scorer in self._scorers)

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row with every member. `tokens_computed` counts each member's forward."""
        scored = [scorer.score(batch) for scorer in self._scorers]
        for scores in scored:
            if len(scores.rows) != len(batch):
                return scores  # the batcher compares the counts and reports the wrong one
        return BatchScores(
            rows=tuple(self._merged(rows) for rows in zip(*(scores.rows for scores in scored), strict=True)),
            tokens_computed=sum(scores.tokens_computed for scores in scored),
            tokens_padding=sum(scores.tokens_padding for scores in scored),
        )

    def close(self) -> None:
        """Close every member."""
        for scorer in self._scorers:
            scorer.close()

    def _merged(self, rows: tuple[HeadScores, ...]) -> HeadScores:
        merged = {
            head_name(member, head): value
            for (member, _), heads in zip(self._members, rows, strict=True)
            for head, value in heads.items()
            if head != DISTANCE
        }
        if distances := [heads[DISTANCE] for heads in rows if DISTANCE in heads]:
            # Not the maximum: it would be that of the member whose reference has the most directions.
            merged[DISTANCE] = sum(distances) / len(distances)
        return merged


def ensemble(members: Sequence[tuple[str, LoadedModel]]) -> LoadedModel:
    """Combine models, by name, into one `LoadedModel`. Raise `LoadError` where they would read different ids."""
    (_, first), *others = members
    for name, other in others:
        for clause in _ENCODING_CLAUSES:
            one, another = getattr(first.contract, clause), getattr(other.contract, clause)
            if one != another:
                raise LoadError(
                    f"models: {name} and {members[0][0]} encode samples differently ({clause}: {another!r} and "
                    f"{one!r}), so they cannot share a batch. Serve them separately, or train them on one tokenizer and template."
                )
    return LoadedModel(
        identity=_identity(members),
        scorer=EnsembleScorer([(name, loaded.scorer) for name, loaded in members]),
        # Equal clauses give equal ids; the encoder of the smallest embedding table refuses ids that any member lacks.
        encode=min((loaded for _, loaded in members), key=lambda loaded: loaded.identity.vocab_size).encode,
        contract=_contract(members),
        report=_report(members),
        calibration=None,
        members=tuple(EnsembleMember(name, _heads(name, loaded), loaded.calibration) for name, loaded in members),
    )


def _heads(name: str, loaded: LoadedModel) -> tuple[tuple[str, float], ...]:
    return tuple((head_name(name, head), weight) for head, weight in loaded.identity.heads)


def _identity(members: Sequence[tuple[str, LoadedModel]]) -> Identity:
    identities = [loaded.identity for _, loaded in members]
    return replace(
        identities[0],
        name="+".join(name for name, _ in members),
        architecture=_listed(i.architecture for i in identities),
        engine=_listed(i.engine for i in identities),
        dtype=_listed(i.dtype for i in identities),
        heads=tuple(head for name, loaded in members for head in _heads(name, loaded)),
        n_parameters=sum(i.n_parameters for i in identities),
        max_tokens=min(i.max_tokens for i in identities),
        vocab_size=min(i.vocab_size for i in identities),
        engine_notes=tuple(f"{name}: {note}" for name, loaded in members for note in loaded.identity.engine_notes),
        score_position=_positions(members),
        matmul_kernels=_listed(i.matmul_kernels for i in identities),
        matmul_precision="high" if any(i.matmul_precision == "high" for i in identities) else "highest",
    )


def _positions(members: Sequence[tuple[str, LoadedModel]]) -> str:
    """Score position of each member; only one text where all are equal."""
    positions = {name: loaded.identity.score_position for name, loaded in members}
    first, *others = dict.fromkeys(positions.values())
    return "; ".join(f"{name} {position}" for name, position in positions.items()) if others else first


def _contract(members: Sequence[tuple[str, LoadedModel]]) -> ScoringContract:
    """Contract with the first member's encoding and digests over all weights; each member's probes were checked at its load."""
    contracts = [loaded.contract for _, loaded in members]
    return replace(
        contracts[0],
        weights_digest=_digest([c.weights_digest for c in contracts]),
        head_digest=_digest([c.head_digest for c in contracts]),
        heads=tuple(head for name, loaded in members for head in _heads(name, loaded)),
        probes=(),
    )


def _report(members: Sequence[tuple[str, LoadedModel]]) -> ContractReport:
    reports = [loaded.report for _, loaded in members]
    errors = [report.max_probe_error for report in reports if report.max_probe_error is not None]
    return ContractReport(
        origin="written" if all(report.origin == "written" for report in reports) else "inferred",
        breaches=tuple(breach for report in reports for breach in report.breaches),
        n_probes=sum(report.n_probes for report in reports),
        max_probe_error=max(errors, default=None),
    )


def _digest(digests: Sequence[str]) -> str:
    return "sha256:" + hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _listed(words: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(words))
