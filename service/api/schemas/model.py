"""The reply of `GET /model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import UNSET, UnsetType, field

from rewardserve.service.api.field_docs import CHECKPOINT, DIGEST, doc
from rewardserve.service.api.schemas.record import ReplyRecord

_HEAD = {"name": "score", "weight": 1.0}
_SCALE = {"mean": 0.31, "std": 1.84, "temperature": 1.0}
_MEMBER = {"name": "score", "heads": [_HEAD], "scale": _SCALE, "weight": 1.0}
_STAGE = {"name": "shape", "is": "Cap", "low": -3.1, "high": 2.9}
_MARGIN = {"canary": "flattery", "margin": -0.12, "judge_margin": 0.8}
_TRAIT = {"name": "length", "mean": 4.1, "std": 0.9}
_BREACH = {
    "clause": "pad_id",
    "message": "the tokenizer pads with 0, the contract with 2",
    "remedy": "restore the tokenizer",
}
_KNOTS = [[2.0, -0.4], [6.0, 0.3]]
Unset = UnsetType


class ModelVersionOut(ReplyRecord, frozen=True, gc=False):
    """A model, its version and its digests."""

    model: Annotated[str, doc("name of the model: the path or hub name from which it was loaded", CHECKPOINT)]
    model_version: Annotated[int, doc("version of the model within this process", 2)]
    contract: Annotated[str, doc("digest of the scoring contract", DIGEST)]
    calibration: Annotated[str | None, doc("digest of the calibration; null without one", DIGEST)]


class HeadOut(ReplyRecord, frozen=True, gc=False):
    """A value head: the raw score is the sum of weight * value over the heads."""

    name: Annotated[str, doc("name of the head", "score")]
    weight: Annotated[float, doc("weight of its value in the raw score", 1.0)]


class IdentityOut(ReplyRecord, frozen=True, gc=False):
    """What the model is."""

    name: Annotated[str, doc("the path or hub name from which it was loaded", CHECKPOINT)]
    architecture: Annotated[str, doc("architecture of its base model", "Qwen2ForCausalLM")]
    n_parameters: Annotated[int, doc("number of its parameters", 494_032_768)]
    heads: Annotated[list[HeadOut], doc("value heads with their weights in the raw score", [_HEAD])]


class BackendOut(ReplyRecord, frozen=True, gc=False):
    """What computes the scores."""

    name: Annotated[str, doc("backend: torch, vllm or echo", "torch")]
    engine: Annotated[str, doc("engine of the backend, chosen at load by a comparison with plain forwards", "packed")]
    engine_notes: Annotated[Sequence[str], doc("optimisations that are left out for this model, with the reason", [])]
    score_position: Annotated[str, doc("token at which the score is read, and the reason", "the last token")]
    device: Annotated[str, doc("where the forward pass runs, in the terms of torch", "cpu")]
    dtype: Annotated[str, doc("type of the weights", "float32")]
    matmul_precision: Annotated[str, doc("precision of float32 products", "highest")]
    matmul_kernels: Annotated[str, doc("what computes these: amx, avx512, mkl or torch; empty: unknown", "avx512")]


class BreachOut(ReplyRecord, frozen=True, gc=False):
    """A broken clause of the contract."""

    clause: Annotated[str, doc("name of the clause", "pad_id")]
    message: Annotated[str, doc("the observed difference", _BREACH["message"])]
    remedy: Annotated[str, doc("what to do", _BREACH["remedy"])]


class ContractReportOut(ReplyRecord, frozen=True, gc=False):
    """Verification of the contract at load."""

    origin: Annotated[str, doc("written: by training; inferred: from the checkpoint, without a contract", "written")]
    holds: Annotated[bool, doc("whether no clause is broken", True)]
    breaches: Annotated[list[BreachOut], doc("the broken clauses", [], [_BREACH])]
    n_probes: Annotated[int, doc("golden probes that were encoded and scored again", 16)]
    max_probe_error: Annotated[
        float | None, doc("largest difference of a probe's score from that in the contract; null without one", 2e-6)
    ]


class CanaryMargin(ReplyRecord, frozen=True, gc=False):
    """A pair of an honest answer and an exploit."""

    canary: Annotated[str, doc("name of the pair", "flattery")]
    margin: Annotated[
        float | None, doc("raw score of the honest answer above that of the exploit; below 0 the exploit pays", -0.12)
    ]
    judge_margin: Annotated[
        float | None,
        doc("the same by the audit judge, as it was loaded; below 0 it prefers the exploit too; null without one", 0.8),
    ]


class CanariesOut(ReplyRecord, frozen=True, gc=False):
    """Canaries, scored again every ten minutes. Of a failing one the exploit scores at least as high as the honest
    answer, so a policy that is trained against this model can learn the exploit.
    """

    n: Annotated[int, doc("number of pairs that are scored again", 10)]
    failing: Annotated[list[CanaryMargin], doc("those whose exploit scores at least as high", [], [_MARGIN])]
    margins: Annotated[list[CanaryMargin], doc("margin of each pair at load", [_MARGIN])]


class AuditJudgeOut(ReplyRecord, frozen=True, gc=False):
    """The second model that scores a share of the samples for the trip wires. Without one nothing is compared with another
    judgement.
    """

    name: Annotated[str, doc("folder or name of the judge", f"{CHECKPOINT}/audit_judge")]
    n_parameters: Annotated[int, doc("number of parameters of the audit judge", 330_000_000)]
    contract: Annotated[str, doc("digest of its scoring contract", DIGEST)]
    share: Annotated[float, doc("share of the samples that it scores after the start of a run", 0.1)]


class KeptTexts(ReplyRecord, frozen=True, gc=False):
    """Texts that the server keeps in memory for attribution."""

    keeps_texts: Annotated[bool, doc("whether it keeps texts of runs, with their prompts", True)]
    samples: Annotated[int, doc("first responses, and as many latest ones, of each run", 256)]
    characters: Annotated[int, doc("characters that are kept of a text", 4000)]
    bytes: Annotated[int, doc("limit over all runs", 67_108_864)]


class NumericNoiseOut(ReplyRecord, frozen=True, gc=False):
    """How much a raw score depends on the other rows of its batch, measured at load."""

    max: Annotated[float, doc("largest change of a raw score", 3e-6)]
    p99: Annotated[float, doc("99th percentile", 2e-6)]
    rows: Annotated[int, doc("rows that were scored alone and in batches", 24)]


class ContractClauses(ReplyRecord, frozen=True, gc=False):
    """The clauses of the scoring contract but for the text of the template and the golden probes."""

    template_digest: Annotated[str, doc("digest of the chat template", DIGEST)]
    bos_id: Annotated[int | None, doc("token that begins a row; null: none", 1)]
    end_text: Annotated[str, doc("text of the end token", "<|im_end|>")]
    end_ids: Annotated[Sequence[int], doc("tokens that end a row", [151_645])]
    template_tail: Annotated[str, doc("text of the template after a response", "<|im_end|>\n")]
    ending: Annotated[str, doc("text that ends a row: of the template, an end token, or both", "template")]
    reads_at: Annotated[str, doc("token at which the score is read", "last")]
    skip_id: Annotated[int | None, doc("pad token that `last_non_pad` skips; null: none", 151_643)]
    bos_without_template: Annotated[str, doc("token that begins a row without a template", "tokenizer")]
    tokenizes: Annotated[str, doc("whether a rendering is tokenised as a whole or in slots", "whole")]
    truncation: Annotated[str, doc("prompt_left: a long prompt is cut; error: it is refused", "prompt_left")]
    max_tokens: Annotated[int, doc("limit of tokens of a sample", 4096)]
    pad_id: Annotated[int, doc("token that pads rows", 151_643)]
    tokenizer_digest: Annotated[str, doc("digest by which the load finds another tokenizer", DIGEST)]
    weights_digest: Annotated[str, doc("digest by which the load finds another base model", DIGEST)]
    head_digest: Annotated[str, doc("digest of the value heads", DIGEST)]
    dtype: Annotated[str, doc("type of the weights in training", "float32")]
    dtype_tolerance: Annotated[
        Mapping[str, float], doc("allowed difference of a probe's score when served in this type", {"bfloat16": 0.02})
    ]
    template_date: Annotated[str | None, doc("date for a template that uses one; null: it uses none", "2026-11-30")]


class HeadCalibrationOut(ReplyRecord, frozen=True, gc=False):
    """Statistics of one head on the reference responses."""

    name: Annotated[str, doc("name of the head", "helpful")]
    mean: Annotated[float, doc("mean of its raw values", 0.2)]
    std: Annotated[float, doc("standard deviation of its raw values", 1.1)]
    temperature: Annotated[float, doc("divides differences in the Bradley-Terry probability", 1.0)]


class TraitCalibrationOut(ReplyRecord, frozen=True, gc=False):
    """Statistics of one trait of the reference responses."""

    name: Annotated[str, doc("name of the trait", "length")]
    mean: Annotated[float, doc("mean of the trait over the reference responses", 4.1)]
    std: Annotated[float, doc("standard deviation of the trait over the reference responses", 0.9)]


class CalibrationOut(ReplyRecord, frozen=True, gc=False):
    """Statistics of raw scores on held-out reference responses."""

    mean: Annotated[float, doc("mean of the raw scores", 0.31)]
    std: Annotated[float, doc("standard deviation of the raw scores", 1.84)]
    temperature: Annotated[float, doc("divides differences in the Bradley-Terry probability", 1.0)]
    cap_low: Annotated[float | None, doc("lower cap of the normalised score; null: none", -3.1)]
    cap_high: Annotated[float | None, doc("upper cap of the normalised score; null: none", 2.9)]
    length_slope: Annotated[float | None, doc("slope of the normalised score on the log of the length", 0.18)]
    length_curve: Annotated[Sequence[Sequence[float]], doc("normalised score expected at a log length", _KNOTS)]
    log_length: Annotated[float | None, doc("median log length of a response", 4.2)]
    repetition_high: Annotated[float | None, doc("repetition that 99 of 100 responses do not exceed", 0.21)]
    heads: Annotated[list[HeadCalibrationOut], doc("statistics of each head, where there are several", [])]
    traits: Annotated[list[TraitCalibrationOut], doc("statistics of the traits of responses", [_TRAIT])]
    lexicon: Annotated[str, doc("digest of the phrases of traits; empty: none", DIGEST)]
    hidden_reference: Annotated[str, doc("digest of the statistics of hidden states; empty: none", "")]
    quantiles: Annotated[
        Sequence[Sequence[float]], doc("raw score below which a share lies", [[0.5, 0.29], [0.99, 4.4]])
    ]
    n: Annotated[int, doc("number of reference responses that it was fitted on", 2000)]
    data_digest: Annotated[str, doc("digest of the reference responses", DIGEST)]
    source: Annotated[str, doc("where the statistics come from", "fitted")]


class ScaleOut(ReplyRecord, frozen=True, gc=False):
    """Scale of one member: z = (raw - mean) / std."""

    mean: Annotated[float, doc("mean of the raw scores", 0.31)]
    std: Annotated[float, doc("standard deviation of the raw scores", 1.84)]
    temperature: Annotated[float, doc("divides differences in the Bradley-Terry probability", 1.0)]


class MemberOut(ReplyRecord, frozen=True, gc=False):
    """A member of the combination: the model, one of its heads, or one of several models."""

    name: Annotated[str, doc("name of the member", "score")]
    heads: Annotated[list[HeadOut], doc("heads whose weighted sum is its raw score", [_HEAD])]
    scale: Annotated[ScaleOut, doc("its scale; mean 0 and std 1 without normalisation", _SCALE)]
    weight: Annotated[float, doc("its share among the members", 1.0)]


class StageOut(ReplyRecord, frozen=True, gc=False):
    """A stage of the pipeline after the combination, with its parameters: those fields that its kind has."""

    name: Annotated[str, doc("name of the stage in results", "shape")]
    kind: Annotated[str, doc("kind of the stage", "Cap")] = field(name="is")
    gamma: Annotated[float | Unset, doc("share of the expected effect of length that is subtracted", 0.5)] = UNSET
    curve: Annotated[Sequence[Sequence[float]] | Unset, doc("normalised score expected at a log length", _KNOTS)] = (
        UNSET
    )
    log_reference: Annotated[float | Unset, doc("log length at which nothing is subtracted", 4.2)] = UNSET
    penalty: Annotated[float | Unset, doc("what is subtracted in full", 1.0)] = UNSET
    start: Annotated[int | Unset, doc("tokens of the response at which the penalty begins", 512)] = UNSET
    end: Annotated[int | Unset, doc("tokens of the response at which the penalty is full", 1024)] = UNSET
    threshold: Annotated[float | Unset, doc("share of repeated trigrams at which the penalty begins", 0.2)] = UNSET
    low: Annotated[float | Unset | None, doc("lower cap; null: none", -3.1)] = UNSET
    high: Annotated[float | Unset | None, doc("upper cap; null: none", 2.9)] = UNSET
    width: Annotated[float | Unset, doc("distance from a cap at which the soft cap begins", 0.5)] = UNSET
    slope: Annotated[float | Unset, doc("slope of the sigmoid", 1.0)] = UNSET
    reference: Annotated[float | Unset, doc("reference score without rewards of references", 0.4)] = UNSET
    references: Annotated[Sequence[float] | Unset, doc("reference scores without rewards of references", [0.4])] = UNSET
    mean: Annotated[float | Unset, doc("mean of the raw scores", 0.31)] = UNSET
    std: Annotated[float | Unset, doc("standard deviation of the raw scores", 1.84)] = UNSET


class PipelineOut(ReplyRecord, frozen=True, gc=False):
    """The reward pipeline: raw scores become rewards."""

    digest: Annotated[str, doc("digest of the pipeline", DIGEST)]
    normalizes: Annotated[bool, doc("whether raw scores are normalised", True)]
    shape: Annotated[str, doc("last stage: none, cap, softcap, par or lsc", "cap")]
    cap_low: Annotated[float | None, doc("lowest reward; null: none", -3.1)]
    cap_high: Annotated[float | None, doc("highest reward; null: none", 2.9)]
    combine: Annotated[str, doc("how the members are combined", "sum")]
    members: Annotated[list[MemberOut], doc("members of the combination", [_MEMBER])]
    stages: Annotated[list[StageOut], doc("stages after the combination, in order", [_STAGE])]


class LimitsOut(ReplyRecord, frozen=True, gc=False):
    """Limits of requests and of batches."""

    max_input_tokens: Annotated[int, doc("tokens of a sample", 4096)]
    max_samples_per_request: Annotated[int, doc("most samples of one request", 1024)]
    max_body_bytes: Annotated[int, doc("most bytes of the body of one request", 33_554_432)]
    admission_max_samples: Annotated[int, doc("samples that the server admits at once", 4096)]
    admission_max_tokens: Annotated[int, doc("tokens that the server admits at once", 1_000_000)]
    batching_max_tokens: Annotated[int, doc("tokens of a batch at most", 16_384)]
    batching_budget_tokens: Annotated[int, doc("tokens of a batch now", 8192)]
    batching_linger_ms: Annotated[float, doc("wait of a request for others to share its batch", 2.0)]


class ModelReply(ModelVersionOut, frozen=True, gc=False):
    """The model in service, its contract and verification, the reward pipeline, and the limits of requests."""

    identity: Annotated[IdentityOut, doc("what the model is", {"name": CHECKPOINT, "architecture": "Qwen2ForCausalLM",
        "n_parameters": 494_032_768, "heads": [_HEAD]})]  # fmt: skip
    backend: Annotated[
        BackendOut,
        doc(
            "what computes the scores",
            {"name": "torch", "engine": "packed", "engine_notes": [], "score_position": "the last token",
             "device": "cpu", "dtype": "float32", "matmul_precision": "highest", "matmul_kernels": "avx512"},
        ),
    ]  # fmt: skip
    contract_report: Annotated[
        ContractReportOut,
        doc(
            "verification at load",
            {"origin": "written", "holds": True, "breaches": [], "n_probes": 16, "max_probe_error": 2e-6},
        ),
    ]
    canaries: Annotated[
        CanariesOut, doc("pairs of honest answer and exploit", {"n": 10, "failing": [_MARGIN], "margins": [_MARGIN]})
    ]
    audit_judge: Annotated[
        AuditJudgeOut | None,
        doc(
            "the audit judge; null: none (REWARD_AUDIT_MODEL)",
            {"name": f"{CHECKPOINT}/audit_judge", "n_parameters": 330_000_000, "contract": DIGEST, "share": 0.1},
        ),
    ]
    attribution: Annotated[
        KeptTexts,
        doc("texts of runs in memory", {"keeps_texts": True, "samples": 256, "characters": 4000, "bytes": 67_108_864}),
    ]
    capture: Annotated[str, doc("which samples are written to the review store: REWARD_CAPTURE", "flagged")]
    numeric_noise: Annotated[
        NumericNoiseOut | None,
        doc("effect of a batch on a score; null: not measured", {"max": 3e-6, "p99": 2e-6, "rows": 24}),
    ]
    contract_clauses: Annotated[
        ContractClauses,
        doc(
            "how texts are encoded and where the score is read",
            {"template_digest": DIGEST, "bos_id": None, "end_text": "<|im_end|>", "end_ids": [151_645],
             "template_tail": "<|im_end|>\n", "ending": "template", "reads_at": "last", "skip_id": None,
             "bos_without_template": "tokenizer", "tokenizes": "whole", "truncation": "prompt_left", "max_tokens": 4096,
             "pad_id": 151_643, "tokenizer_digest": DIGEST, "weights_digest": DIGEST, "head_digest": DIGEST,
             "dtype": "float32", "dtype_tolerance": {"bfloat16": 0.02}, "template_date": None},
        ),
    ]  # fmt: skip
    calibration_data: Annotated[
        CalibrationOut | None,
        doc(
            "statistics of the calibration; null without one",
            {**_SCALE, "cap_low": -3.1, "cap_high": 2.9, "length_slope": 0.18, "length_curve": _KNOTS, "log_length": 4.2,
             "repetition_high": 0.21, "heads": [], "traits": [_TRAIT], "lexicon": DIGEST, "hidden_reference": "",
             "quantiles": [[0.5, 0.29]], "n": 2000, "data_digest": DIGEST, "source": "fitted"},
        ),
    ]  # fmt: skip
    pipeline: Annotated[
        PipelineOut,
        doc(
            "stages from the raw score to the reward",
            {"digest": DIGEST, "normalizes": True, "shape": "cap", "cap_low": -3.1, "cap_high": 2.9, "combine": "sum",
             "members": [_MEMBER], "stages": [_STAGE]},
        ),
    ]  # fmt: skip
    limits: Annotated[
        LimitsOut,
        doc(
            "limits of requests and of batches",
            {"max_input_tokens": 4096, "max_samples_per_request": 1024, "max_body_bytes": 33_554_432,
             "admission_max_samples": 4096, "admission_max_tokens": 1_000_000, "batching_max_tokens": 16_384,
             "batching_budget_tokens": 8192, "batching_linger_ms": 2.0},
        ),
    ]  # fmt: skip
