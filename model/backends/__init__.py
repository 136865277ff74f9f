"""Table of backends, name -> loader; a backend is imported when it is first loaded.

A backend turns a `ModelSpec` into a `LoadedModel`: a `Scorer`, its encoder, and the facts about both. This module itself
needs the standard library only.
"""

from __future__ import annotations

import importlib
import re
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
from rewardserve.model.reward.checkpoint_members import members_of
from rewardserve.model.scorer import HeadScores, Scorer, weighted_sum
from rewardserve.model.text.nearest_word import did_you_mean

BACKENDS: dict[str, str] = {
    "torch": "rewardserve.model.backends.torch:load",
    "vllm": "rewardserve.model.backends.vllm_backend:load",
    "echo": "rewardserve.model.backends.echo:load",
}


MatmulPrecision = Literal["highest", "high"]
"""Multiplication of float32 matrices, named as in `torch.set_float32_matmul_precision`: in float32, or as three products of
bfloat16 where the CPU has AMX (see `native/amx.c`)."""


DEVICES = "auto, cpu, cuda or cuda:N"
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?")


class LoadError(Exception):
    """The model cannot be served; the message has the reason and the remedy."""


class ContractBroken(LoadError):
    """The model breaks its contract; `report` has every broken clause."""

    def __init__(self, report: ContractReport) -> None:
        super().__init__("\n".join(str(b) for b in report.breaches))
        self.report = report


@dataclass(frozen=True, slots=True)
class VllmSpec:
    """Options of vLLM's engine; None: vLLM's default.

    `stall_timeout_s`: seconds without any result while rows wait, after which the engine counts as dead.
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    enforce_eager: bool = False
    stall_timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Model and options that the operator has chosen. `model` empty: the embedded default.

    `deterministic`: a row's score has the same bits in every batch. `prefix_cache_bytes` bounds the keys and
    values that are carried from one batch to the next; 0: no prefix cache. `allow_pickle`: weights need not be safetensors.
    `ignore_checkpoint_code`: a checkpoint with custom code (`auto_map`) is read without that code.
    For a checkpoint without a contract: `template_date` is the ISO date for a chat template that uses the current date;
    `ending` and `reads_at` replace the layout's rule for the ending of a row and the position of its score.
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
    """Identity of a loaded model. `heads` are (name, weight): raw = sum of weight * value over the heads.

    `engine_notes`: optimisations that the engine leaves out for this model, with the reason, and weaknesses of the model.
    `vocab_size`: rows of the embedding table.
    `score_position`: the token at which the score is read, and the reason, in words.
    `matmul_kernels`: "amx" or "avx512" for the kernels in C, "mkl", or "torch" for PyTorch's choice; empty where unknown.
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
    matmul_kernels: str = ""

    def raw(self, scores: HeadScores) -> float:
        """Raw score: the weighted sum of the heads."""
        return weighted_sum(self.heads, scores)


class SampleEncoder(Protocol):
    """Sample -> ids. Thread-safe."""

    def __call__(self, sample: Sample) -> Encoded:
        """Encode one sample. Raise `SampleError` if it cannot be scored."""
        ...

    def many(self, samples: Sequence[Sample]) -> list[Encoded | SampleError]:
        """One entry a sample, in order."""
        ...

    def texts(self, sample: Sample) -> tuple[str, str]:
        """Prompt and response as plain text, without the ending; empty where they are unknown."""
        return sample.texts()

    def first_turns(self, sample: Sample) -> str:
        """The turns before the first response of rendered text or token ids; empty where they are not known, and for messages."""
        return ""

    def is_rendered(self, prompt: str) -> bool:
        """Whether a prompt ends with the template's text before a response: the client has rendered it."""
        return False

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens too; bytes that are no whole character become U+FFFD."""
        return ""


def encode_each(encode: Callable[[Sample], Encoded], samples: Sequence[Sample]) -> list[Encoded | SampleError]:
    """Encode samples one after the other: `SampleEncoder.many` for an encoder without batching."""
    encoded: list[Encoded | SampleError] = []
    for sample in samples:
        try:
            encoded.append(encode(sample))
        except SampleError as error:
            encoded.append(error)
    return encoded


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to score, with its identity, contract and calibration.

    `members` are those of an ensemble. `memory` returns the device's bytes in use and its total bytes.
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
    def calibration_digest(self) -> str | None:
        """Digest of the calibration; None for a model without one."""
        return None if self.calibration is None else self.calibration.digest

    @property
    def ensemble_members(self) -> tuple[EnsembleMember, ...]:
        """Members for the reward pipeline: those of the ensemble or of the checkpoint, or the model itself."""
        heads = self.identity.heads
        return (
            self.members
            or members_of(heads, self.calibration)
            or (EnsembleMember(self.identity.name, heads, self.calibration),)
        )


def require_device(name: str) -> str:
    """Return the name of a device. Raise ValueError for other names."""
    if _DEVICE.fullmatch(name) is None:
        raise ValueError(f"must be {DEVICES}, not {name!r}{_device_meant(name)}")
    return name


def _device_meant(name: str) -> str:
    """The suggestion of an error message. `gpu` is CUDA's; another processor, such as a TPU, is not a misspelt CPU."""
    gpu = re.fullmatch(r"(?:gpu|cuda)[ :_-]?([0-9]*)", name.lower())
    if gpu is not None:
        return f"; did you mean cuda{f':{gpu[1]}' * bool(gpu[1])}?"
    return "" if re.fullmatch(r"[^c]pu", name.lower()) else did_you_mean(name, ("auto", "cpu", "cuda"))


def require_backend(name: str) -> str:
    """Return the name of a backend. Raise ValueError for other names."""
    if name not in BACKENDS:
        raise ValueError(f"must be one of {', '.join(BACKENDS)}, not {name!r}{did_you_mean(name, BACKENDS)}")
    return name


def load(backend: str, spec: ModelSpec) -> LoadedModel:
    """Load `spec` with the named backend. Raise `LoadError` (`ContractBroken` in strict mode)."""
    limit_spinning()
    module, _, function = BACKENDS[backend].partition(":")
    loader: Callable[[ModelSpec], LoadedModel] = getattr(importlib.import_module(module), function)
    return loader(spec)
