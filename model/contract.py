"""ScoringContract: everything that must be equal for a score to mean the same in training and serving.

Training writes it beside the weights; the server verifies it at load, clause by clause, before it is ready.
Standard library only: the facts of a loaded model are plain values.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any, Literal

from rewardserve.model.conversation import Message, Sample, SampleError, ToolCall
from rewardserve.model.layout_rules import BosWithoutTemplate, Ending, LayoutRule, ReadsAt, Tokenizes
from rewardserve.model.text.field_types import check_fields
from rewardserve.model.text.text_files import decode_text, parse_json, write_text

FILE_NAME = "scoring_contract.json"
N_PROBES = 16
FORMAT = 2

Truncation = Literal["prompt_left", "error"]
Origin = Literal["written", "inferred"]


class ContractUnreadable(Exception):
    """`scoring_contract.json` exists and is invalid."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A golden probe: a sample with its ids and its float32 score when the contract was written.

    `tolerance` is the largest difference in raw score that the writer accepts in float32.
    """

    sample: dict[str, Any]
    ids: tuple[int, ...]
    score: float
    tolerance: float


@dataclass(frozen=True, slots=True)
class ObservedFacts:
    """Facts of the loaded model, which `verify` compares with the clauses of the contract."""

    template_digest: str
    bos_id: int | None
    end_text: str
    end_ids: tuple[int, ...]
    pad_id: int
    tokenizer_digest: str
    weights_digest: str
    head_digest: str
    dtype: str
    template_date: str | None = None


@dataclass(frozen=True, slots=True)
class ScoringContract:
    """The clauses. `template` is stored in full, so that a lost chat template can be restored.

    `template_date`: the ISO date for a chat template that uses the current date; None: it uses none.
    `ending` and `reads_at` are the text that ends a row and the token whose score is read (`layout_rules`); `skip_id` is the
    pad token that `last_non_pad` skips; `tokenizes`: whether a rendering is tokenised as a whole;
    `bos_without_template` matters where `template` is empty.
    """

    template: str
    template_digest: str
    bos_id: int | None
    end_text: str
    end_ids: tuple[int, ...]
    template_tail: str
    ending: Ending
    reads_at: ReadsAt
    skip_id: int | None
    bos_without_template: BosWithoutTemplate
    tokenizes: Tokenizes
    truncation: Truncation
    max_tokens: int
    pad_id: int
    tokenizer_digest: str
    weights_digest: str
    head_digest: str
    dtype: str
    heads: tuple[tuple[str, float], ...]
    probes: tuple[Probe, ...] = ()
    dtype_tolerance: tuple[tuple[str, float], ...] = ()
    template_date: str | None = None
    origin: Origin = "written"
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """`sha256:...` of all clauses and probes; every reply carries it."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    @property
    def rule(self) -> LayoutRule:
        """The contract's rule for the ending of a row and the position of its score."""
        reason = "scoring_contract.json says so"
        return LayoutRule(self.ending, self.reads_at, self.bos_without_template, self.tokenizes, reason)

    def tolerance_for(self, dtype: str, probe: Probe) -> float:
        """Largest allowed difference of a probe served in `dtype`, in units of the raw score."""
        return max(probe.tolerance, dict(self.dtype_tolerance).get(dtype, 0.0))

    def save(self, folder: Path) -> None:
        """Write `scoring_contract.json` into a checkpoint folder, over an existing one. Raise `OSError`."""
        write_text(folder / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether the folder has a contract, readable or not."""
        return (folder / FILE_NAME).is_file()

    @classmethod
    def load(cls, folder: Path) -> ScoringContract | None:
        """Read `scoring_contract.json`, or None where there is none. Raise `ContractUnreadable`."""
        if not cls.is_in(folder):
            return None
        try:
            raw: dict[str, Any] = parse_json((folder / FILE_NAME).read_text())
            if raw.get("format") != FORMAT:
                found = f"has format {raw['format']!r}" if "format" in raw else "names no format"
                raise ContractUnreadable(
                    f"{FILE_NAME} {found}; this version reads {FORMAT}. Export the checkpoint again"
                )
            unknown = sorted(set(raw) - {f.name for f in fields(cls)})
            if unknown:
                raise ContractUnreadable(f"{FILE_NAME}: unknown clauses {unknown}")
            if raw.get("template_date") is not None:
                require_date(raw["template_date"], "template_date")
            # Those of an inferred contract may be absent; a written one has them.
            if missing := [name for name in ("probes", "dtype_tolerance") if name not in raw]:
                raise ValueError(f"{missing[0]} is missing")
            check_fields(raw, cls)
            for i, probe in enumerate(raw["probes"]):
                _check_sample(probe["sample"], f"probes[{i}].sample")
            raw["end_ids"] = tuple(raw["end_ids"])
            raw["heads"] = tuple((str(n), float(w)) for n, w in raw["heads"])
            raw["dtype_tolerance"] = tuple((str(d), float(t)) for d, t in raw["dtype_tolerance"])
            raw["probes"] = tuple(
                Probe(p["sample"], tuple(p["ids"]), p["score"], p["tolerance"]) for p in raw["probes"]
            )
            return cls(**raw)
        except (TypeError, ValueError) as error:
            raise ContractUnreadable(f"{FILE_NAME} is unreadable: {error}. Export the checkpoint again.") from error


def require_date(value: str, name: str = "") -> str:
    """Return an ISO date. Raise ValueError for other text, and for a day that does not exist."""
    try:
        written = date.fromisoformat(str(value)).isoformat()
    except ValueError:
        written = None
    if written != value:
        raise ValueError(f"{name}{': ' * bool(name)}must be a date of the form YYYY-MM-DD, not {value!r}")
    return value


@dataclass(frozen=True, slots=True)
class Breach:
    """A broken clause with its name, the observed difference and the remedy."""

    clause: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """One line for a log or a terminal."""
        return f"contract clause {self.clause!r} is broken: {self.message} Remedy: {self.remedy}"


@dataclass(frozen=True, slots=True)
class ContractReport:
    """The outcome of a verification, as `GET /model` and `rewardserve check` show it.

    `max_probe_error` is the largest |score now - score in the contract|, None where no probe could be scored.
    """

    origin: Origin
    breaches: tuple[Breach, ...]
    n_probes: int
    max_probe_error: float | None

    @property
    def holds(self) -> bool:
        """Whether no clause is broken."""
        return not self.breaches


def verify(
    contract: ScoringContract,
    facts: ObservedFacts,
    probe_ids: tuple[tuple[int, ...], ...],
    probe_scores: tuple[float, ...],
) -> ContractReport:
    """Compare a loaded model with its contract. `probe_ids` and `probe_scores` are in the contract's order.

    The report names causes rather than consequences: where ids differ, scores are not compared, and a difference of scores is
    reported as that of the head, the weights or the dtype where one of them has changed.
    """
    breaches = _encoding_breaches(contract, facts)
    pairs = list(zip(contract.probes, probe_ids, strict=True))
    differing = [_ids_breach(i, probe, ids) for i, (probe, ids) in enumerate(pairs) if ids != probe.ids]
    breaches = breaches or differing[:1]
    breaches += _weight_breaches(contract, facts)
    errors = [abs(now - p.score) for p, now in zip(contract.probes, probe_scores, strict=True)]
    if not breaches:
        breaches = _score_breaches(contract, facts, errors)
    finite = [e for e in errors if math.isfinite(e)]
    return ContractReport(contract.origin, tuple(breaches), len(contract.probes), max(finite, default=None))


def _encoding_breaches(contract: ScoringContract, facts: ObservedFacts) -> list[Breach]:
    found: list[Breach] = []
    restore = "restore the tokenizer files that training wrote, or export the checkpoint again."
    if facts.template_digest != contract.template_digest:
        found.append(
            Breach(
                "template",
                f"the chat template is {facts.template_digest[:19]}, training used {contract.template_digest[:19]}.",
                "restore the template from the field `template` of scoring_contract.json.",
            )
        )
    elif facts.template_date != contract.template_date:
        found.append(
            Breach(
                "date",
                f"the chat template gets the date {facts.template_date}, the contract has {contract.template_date}.",
                "export the checkpoint again, or set template_date in scoring_contract.json to the date of training.",
            )
        )
    if facts.bos_id != contract.bos_id:
        found.append(Breach("bos", f"BOS is {facts.bos_id}, training used {contract.bos_id}.", restore))
    if (facts.end_text, facts.end_ids) != (contract.end_text, contract.end_ids):
        found.append(
            Breach(
                "eos",
                f"a response ends with {facts.end_text!r} {facts.end_ids}, training used {contract.end_text!r} "
                f"{contract.end_ids}.",
                restore,
            )
        )
    if facts.pad_id != contract.pad_id:
        found.append(
            Breach(
                "pad",
                f"the pad token is {facts.pad_id}, training used {contract.pad_id}.",
                f"set pad_token_id to {contract.pad_id} in config.json and in the tokenizer.",
            )
        )
    if facts.tokenizer_digest != contract.tokenizer_digest:
        found.append(
            Breach(
                "tokenizer",
                f"the tokenizer is {facts.tokenizer_digest[:19]}, training used {contract.tokenizer_digest[:19]}.",
                restore,
            )
        )
    return found


def _weight_breaches(contract: ScoringContract, facts: ObservedFacts) -> list[Breach]:
    found: list[Breach] = []
    if facts.head_digest != contract.head_digest:
        found.append(
            Breach(
                "head",
                f"the value head is {facts.head_digest[:19]}, training wrote {contract.head_digest[:19]}.",
                "restore the head that training wrote (score.weight and reward_heads.safetensors).",
            )
        )
    if facts.weights_digest != contract.weights_digest:
        found.append(
            Breach(
                "weights",
                f"the backbone is {facts.weights_digest[:19]}, training wrote {contract.weights_digest[:19]}.",
                "restore the weights that training wrote, or export a contract for these.",
            )
        )
    return found


def _ids_breach(i: int, probe: Probe, ids: tuple[int, ...]) -> Breach:
    at = next(
        (k for k, (a, b) in enumerate(zip(ids, probe.ids, strict=False)) if a != b), min(len(ids), len(probe.ids))
    )
    return Breach(
        "encoding",
        f"probe {i} encodes to {len(ids)} ids, training had {len(probe.ids)}; the first difference is at {at}.",
        "serve with the versions of transformers and tokenizers that training used, or export the contract again.",
    )


def _score_breaches(contract: ScoringContract, facts: ObservedFacts, errors: list[float]) -> list[Breach]:
    # NaN compares false with everything: it counts as broken, and as the worst.
    bad = [i for i, e in enumerate(errors) if not e <= contract.tolerance_for(facts.dtype, contract.probes[i])]
    if not bad:
        return []
    worst = max(bad, key=lambda i: (math.isnan(errors[i]), errors[i]))
    allowed = contract.tolerance_for(facts.dtype, contract.probes[worst])
    what = (
        f"{len(bad)} of {len(errors)} golden probes are off, the worst (probe {worst}) by {errors[worst]:.3g}; "
        f"{allowed:.3g} is allowed"
    )
    if facts.dtype != contract.dtype:
        return [
            Breach(
                "dtype",
                f"{what} when served in {facts.dtype}; training scored in {contract.dtype}.",
                f"serve with dtype={contract.dtype}.",
            )
        ]
    return [
        Breach(
            "scores",
            f"{what}, though weights, head and ids are the same.",
            "check the versions of torch and transformers and the attention kernel; `rewardserve check` prints both sides.",
        )
    ]


def sample_to_dict(sample: Sample) -> dict[str, Any]:
    """A probe's sample in the wire format of `POST /score`."""
    out: dict[str, Any] = {}
    if isinstance(sample.prompt, str):
        out["prompt"] = sample.prompt
    elif sample.prompt is not None:
        out["prompt"] = [_message_to_dict(m) for m in sample.prompt]
    if sample.response is not None:
        out["response"] = sample.response
    if sample.messages is not None:
        out["messages"] = [_message_to_dict(m) for m in sample.messages]
    if sample.text is not None:
        out["text"] = sample.text
    if sample.input_ids is not None:
        out["input_ids"] = list(sample.input_ids)
    if sample.finish_reason != "stop":
        out["finish_reason"] = sample.finish_reason
    if sample.tools:
        out["tools"] = sample.tools
    return out


_SAMPLE_FIELDS = ("prompt", "response", "messages", "text", "input_ids", "finish_reason", "tools")


class InvalidSampleFile(ValueError):
    """A line of a file is no sample; the message has file, line and reason."""


def read_samples(path: Path) -> list[Sample]:
    """Read samples: one JSON object a line, as for `POST /score`. Raise `InvalidSampleFile`, `TextDecodeError`, `OSError`."""
    samples = []
    for number, line in enumerate(decode_text(path.read_bytes()).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            raw = parse_json(line)
            if not isinstance(raw, dict):
                raise InvalidSampleFile(f"a sample is an object, got {type(raw).__name__}")
            samples.append(sample_from_dict(raw))
        except (ValueError, SampleError) as error:
            raise InvalidSampleFile(f"{path}, line {number}: {error}") from None
    return samples


def sample_from_dict(raw: dict[str, Any]) -> Sample:
    """The inverse of `sample_to_dict`; ignores other fields. Raise `SampleError`, or `ValueError` for a field of another type."""
    _check_sample(raw)
    prompt = raw.get("prompt")
    messages = raw.get("messages")
    ids = raw.get("input_ids")
    return Sample(
        prompt=tuple(map(_message_from_dict, prompt)) if isinstance(prompt, list) else prompt,
        response=raw.get("response"),
        messages=tuple(map(_message_from_dict, messages)) if messages is not None else None,
        text=raw.get("text"),
        input_ids=tuple(ids) if ids is not None else None,
        finish_reason=raw.get("finish_reason", "stop"),
        tools=raw.get("tools", ""),
    )


def _message_to_dict(message: Message) -> dict[str, Any]:
    """Role and content, and the fields of tool calls that are not empty."""
    whole = asdict(message) | {"tool_calls": [asdict(call) for call in message.tool_calls]}
    return {key: value for key, value in whole.items() if value or key in ("role", "content")}


def _message_from_dict(raw: dict[str, Any]) -> Message:
    return Message(**raw | {"tool_calls": tuple(ToolCall(**call) for call in raw.get("tool_calls", ()))})


def _check_sample(raw: Mapping[str, Any], path: str = "") -> None:
    check_fields({name: raw[name] for name in _SAMPLE_FIELDS if name in raw}, Sample, path)
