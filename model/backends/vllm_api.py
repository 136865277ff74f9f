"""Interface to vLLM: the only module that knows its names.

Read in the sources of 0.20.0 and run with 0.32.0: the V1 engine, its pooling runner, requests of token ids. Names that a
later version changes are adapted here. Other modules know only `VllmEngine`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

from rewardserve.model.backends import LoadError, VllmSpec
from rewardserve.model.scorer import OutOfMemory, ScorerError

_DEFAULTS = {
    # The server has threads and sockets, which a forked engine would inherit.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables of vLLM; those that the operator has set stay."""


@dataclass(frozen=True, slots=True)
class PooledRow:
    """Output of the engine for one row: the values of the labels, and the number of tokens from the prefix cache."""

    values: tuple[float, ...]
    n_cached: int


class VllmEngine(Protocol):
    """A running engine. All methods belong to the event loop that it was started on; `is_dead` may be read anywhere."""

    @property
    def is_dead(self) -> bool:
        """Whether its processes have ended."""
        ...

    async def pool(self, ids: Sequence[int], name: str) -> PooledRow:
        """Compute the raw values of one row under a unique name. Raise vLLM's errors. Cancelling aborts the row."""
        ...

    def shutdown(self) -> None:
        """End the engine's processes. Blocks for seconds."""
        ...


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Arguments of an engine. `one_by_one`: every row has a separate forward, and no prefix is cached."""

    folder: Path
    dtype: str
    max_tokens: int
    keeps_prefixes: bool
    one_by_one: bool
    options: VllmSpec


def version() -> str:
    """Version of vLLM. Raise `LoadError` where it is not installed."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        raise LoadError(
            f"backend=vllm needs vLLM, which does not import here: {error}. Install rewardserve[vllm]."
        ) from error
    return str(vllm.__version__)


def device() -> str:
    """Device type of this build of vLLM: `cpu`, `cuda` or another."""
    from vllm.platforms import current_platform

    return str(current_platform.device_type)


async def start(spec: EngineSpec, on_process_started: Callable[[int], None]) -> VllmEngine:
    """Start an engine on the current event loop; report each of its processes when it starts. Raise vLLM's errors."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    with _reporting_processes(on_process_started):
        return _AsyncVllmEngine(AsyncLLM.from_engine_args(AsyncEngineArgs(**_arguments(spec))))


def _arguments(spec: EngineSpec) -> dict[str, Any]:
    from vllm.config import PoolerConfig

    asked = {
        "gpu_memory_utilization": spec.options.gpu_memory_utilization,
        "max_num_seqs": 1 if spec.one_by_one else spec.options.max_num_seqs,
        # With chunked prefill the rows before a row would decide where it is cut.
        "enable_chunked_prefill": False if spec.one_by_one else None,
        "max_num_batched_tokens": spec.max_tokens if spec.one_by_one else None,
    }
    return {
        "model": str(spec.folder),
        "runner": "pooling",
        "convert": "classify",
        "pooler_config": PoolerConfig(pooling_type="LAST", use_activation=False),
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "dtype": spec.dtype,
        "max_model_len": spec.max_tokens,
        "enable_prefix_caching": spec.keeps_prefixes and not spec.one_by_one,
        "tensor_parallel_size": spec.options.tensor_parallel,
        "pipeline_parallel_size": spec.options.pipeline_parallel,
        "enforce_eager": spec.options.enforce_eager,
        "disable_log_stats": True,
        **{name: value for name, value in asked.items() if value is not None},
    }


class _AsyncVllmEngine:
    """vLLM's asynchronous engine of version 1."""

    def __init__(self, llm: Any) -> None:
        from vllm import PoolingParams

        self._llm = llm
        self._params = PoolingParams(task="classify", use_activation=False)

    @property
    def is_dead(self) -> bool:
        return bool(self._llm.errored)

    async def pool(self, ids: Sequence[int], name: str) -> PooledRow:
        # With a type this is the engine's internal input, which needs no tokenisation.
        prompt: Mapping[str, Any] = {"type": "token", "prompt_token_ids": list(ids)}
        last: Any = None
        async for output in self._llm.encode(prompt, self._params.clone(), name):
            last = output
        if last is None or not last.finished:
            raise ScorerError("vLLM ended a row without a score")
        if (error := getattr(last, "error", None)) is not None:  # in later versions
            raise ScorerError(f"vLLM aborted a row: {error}")
        return PooledRow(tuple(map(float, last.outputs.data.tolist())), int(last.num_cached_tokens or 0))

    def shutdown(self) -> None:
        self._llm.shutdown()


def scorer_error(error: BaseException) -> ScorerError:
    """Translate an error of vLLM into a `ScorerError`."""
    if isinstance(error, ScorerError):
        return error
    chain = list(_causes(error))
    if any("OutOfMemory" in type(cause).__name__ or "out of memory" in str(cause) for cause in chain):
        return OutOfMemory("vLLM has run out of memory")
    if any(type(cause).__name__ == "EngineDeadError" for cause in chain):
        return ScorerError("vLLM's engine has died; its last messages are in the log")
    # vLLM's message may quote a prompt.
    return ScorerError(f"vLLM raised {' from '.join(type(cause).__name__ for cause in chain)}")


def load_error(error: BaseException, spec: EngineSpec) -> LoadError:
    """Explain why an engine did not start, with the operator's remedies."""
    lines = str(error).strip().splitlines()
    return LoadError(
        f"vLLM cannot serve this model: {lines[0] if lines else type(error).__name__} (vLLM's own log, above, has more). "
        f"If it is short of memory: lower max_input_tokens={spec.max_tokens}, change "
        f"vllm.gpu_memory_utilization, or spread the model over more GPUs with vllm.tensor_parallel="
        f"{spec.options.tensor_parallel}. If it does not know the architecture: backend=torch."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _reporting_processes(on_process_started: Callable[[int], None]) -> Iterator[None]:
    """Report the pid of every process that multiprocessing starts while the body runs: at once, before the engine is ready."""
    start = BaseProcess.start

    def start_and_report(self: BaseProcess) -> None:
        start(self)
        if self.pid is not None:
            on_process_started(self.pid)

    BaseProcess.start = start_and_report  # type: ignore[method-assign]
    try:
        yield
    finally:
        BaseProcess.start = start  # type: ignore[method-assign]
