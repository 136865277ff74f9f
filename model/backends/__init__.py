"""One table of backends, name -> loader, imported only when asked for.

A backend turns a `ModelSpec` into a `LoadedModel`: a `Scorer`, the encoding that belongs to it, and what
is known of both. This module itself needs the standard library only.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rewardserve.model.backends.memory import host_memory
from rewardserve.model.backends.openmp import limit_spinning
from rewardserve.model.calibration import Calibration
from rewardserve.model.contract import ContractReport, ScoringContract, Truncation
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.encoding import Encoded
from rewardserve.model.layout_rules import Ending, ReadsAt
from rewardserve.model.reward import EnsembleMember
from rewardserve.model.scorer import HeadScores, Scorer

BACKENDS: dict[str, str] = {
    "torch": "rewardserve.model.backends.torch:load",
    "vllm": "rewardserve.model.backends.vllm_backend:load",
    "echo": "rewardserve.model.backends.echo:load",
}


MatmulPrecision = Literal["highest", "high"]
"""How float32 matrices are multiplied, in the words of `torch.set_float32_matmul_precision`: as float32, or as three
products of bfloat16, where the CPU has a unit for that (see `native/amx.c`)."""


class LoadError(Exception):
    """This model cannot be served; the message says why and what to do."""


class ContractBroken(LoadError):
    """The model is not what its contract says; `report` has every broken clause."""

    def __init__(self, report: ContractReport) -> None:
        super().__init__("\n".join(str(b) for b in report.breaches))
        self.report = report


@dataclass(frozen=True, slots=True)
class VllmSpec:
    """What is asked of vLLM's engine. None: what vLLM takes by itself. `stall_timeout_s`: rows wait, and nothing at all has come
    back for so long: the engine is stuck.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    enforce_eager: bool = False
    stall_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the operator asked for. `model` empty: the embedded default.

    `deterministic`: a row's score has the same bits whatever else is in its batch. `prefix_cache_bytes` bounds the keys and
    values that are carried from one batch to the next; 0: none are. `allow_pickle`: weights need not be safetensors.
    `ignore_checkpoint_code`: a checkpoint that names code of its own is read without it.
    For a checkpoint without a contract: `template_date` is the ISO date that a template which asks for it is given;
    `ending` and `reads_at` say how a row ends and where its score is read, in place of the layout's rule.
    """

    model: str = ""
    device: str = "auto"
    dtype: str = "auto"
    engine: Literal["auto", "packed", "padded"] = "auto"
    matmul_precision: MatmulPrecision = "high"
    deterministic: bool = False
    prefix_cache_bytes: int = 0
    contract_mode: Literal["strict", "warn"] = "strict"
    max_input_tokens: int | None = None
    truncation: Truncation | None = None
    allow_pickle: bool = False
    ignore_checkpoint_code: bool = False
    template_date: str | None = None
    ending: Ending | None = None
    reads_at: ReadsAt | None = None
    vllm: VllmSpec = VllmSpec()


@dataclass(frozen=True, slots=True)
class Identity:
    """What is loaded. `heads` are (name, weight): raw = sum of weight * value over the heads.

    `engine_notes` say what the engine does not do for this model, and why, and what is weak about the model itself.
    `vocab_size`: rows of the embedding table.
    `score_position` says in words at which token the score is read, and why.
    """

    name: str
    architecture: str
    backend: str
    engine: str
    dtype: str
    device: str
    heads: tuple[tuple[str, float], ...]
    n_parameters: int
    max_tokens: int
    engine_notes: tuple[str, ...] = ()
    vocab_size: int = 0
    score_position: str = ""
    matmul_precision: MatmulPrecision = "highest"

    def raw(self, scores: HeadScores) -> float:
        """The weighted sum of the heads: the raw score before anything else happens to it."""
        raw = 0.0
        for name, weight in self.heads:
            raw += weight * scores[name]
        return raw


class SampleEncoder(Protocol):
    """Sample -> ids. Thread-safe."""

    def __call__(self, sample: Sample) -> Encoded:
        """Encode one sample. Raise `SampleError` if it cannot be scored."""
        ...

    def many(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """One entry a sample, in order."""
        ...

    def texts(self, sample: Sample) -> tuple[str, str]:
        """Prompt and response as whoever wrote them would show them, without the ending; empty where nobody knows."""
        return sample.texts()

    def is_rendered(self, prompt: str) -> bool:
        """Whether a prompt ends in what the template writes before a response: it was rendered by the caller."""
        return False


def encode_each(encode: Callable[[Sample], Encoded], samples: Sequence[Sample]) -> list[Encoded | SampleError]:
    """`SampleEncoder.many` of an encoder that knows nothing better than one sample after the other."""
    encoded: list[Encoded | SampleError] = []
    for sample in samples:
        try:
            encoded.append(encode(sample))
        except SampleError as error:
            encoded.append(error)
    return encoded


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to score, and what it said about itself. `members` are those of an ensemble. `memory` of the device:
    bytes in use, and all there are.
    """

    identity: Identity
    scorer: Scorer
    encode: SampleEncoder
    contract: ScoringContract
    report: ContractReport
    calibration: Calibration | None
    members: tuple[EnsembleMember, ...] = ()
    memory: Callable[[], tuple[int, int]] = host_memory

    @property
    def ensemble_members(self) -> tuple[EnsembleMember, ...]:
        """What the reward pipeline is built on: the members of an ensemble, or the model itself."""
        return self.members or (EnsembleMember(self.identity.name, self.identity.heads, self.calibration),)


def load(backend: str, spec: ModelSpec) -> LoadedModel:
    """Load `spec` with the named backend. Raise `LoadError` (`ContractBroken` in strict mode)."""
    limit_spinning()
    module, _, function = BACKENDS[backend].partition(":")
    loader: Callable[[ModelSpec], LoadedModel] = getattr(importlib.import_module(module), function)
    return loader(spec)
