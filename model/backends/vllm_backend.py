"""The vLLM backend: vLLM runs the forward; encoding and the verification of the contract are ours.

vLLM loads the weights in separate processes; the rest of the checkpoint is read here, without them. A checkpoint in a layout
that vLLM cannot read is converted into a temporary folder, which is removed once the engine has started. Knows `vllm_api`;
knows neither requests nor queues.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rewardserve.model.backends import Identity, LoadedModel, LoadError, ModelSpec
from rewardserve.model.backends import vllm_api as api
from rewardserve.model.backends.length_classes import LengthClasses
from rewardserve.model.backends.process_reaper import ProcessReaper
from rewardserve.model.backends.serving import (
    apply_limits,
    as_load_errors,
    check_contract_files,
    enforce_contract,
    folder_or_name,
    read_options,
    rule_notes,
)
from rewardserve.model.backends.vllm_scorer import EventLoopThread, VllmScorer
from rewardserve.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    has_own_weights,
    load_weights,
    read_without_weights,
    write_labels,
)

_UNPROVED = "the checkpoint has no contract with probes, so the scores of this engine were not checked"
_REWRITTEN = "vLLM does not read a checkpoint of this layout: it was converted into a temporary folder"
_NO_DISTANCE = "vLLM returns no hidden states, so the distance to those of the calibration is not known"


def load(spec: ModelSpec) -> LoadedModel:
    """Start an engine for a checkpoint. Raise `LoadError`, in strict mode `ContractBroken` too."""
    version, device = api.version(), _device(spec)
    with as_load_errors():
        checkpoint = read_without_weights(folder_or_name(spec), read_options(spec))
    served = apply_limits(checkpoint, spec)
    _refuse_length_switches(served)
    check_contract_files(spec, checkpoint)
    scorer = _start(checkpoint, spec, served.policy.max_tokens)
    try:
        identity = _identity(served, spec, version, device)
        contract, report = enforce_contract(spec, checkpoint, scorer, identity)
    except BaseException:
        scorer.close()
        raise
    return LoadedModel(identity, scorer, served.encoder, contract, report, checkpoint.calibration)


def _device(spec: ModelSpec) -> str:
    """Device type of vLLM. Raise `LoadError` if it is not the requested one."""
    asked, device = spec.device, api.device()
    if asked not in ("auto", device):
        raise LoadError(
            f"device={asked}, but this build of vLLM computes on {device}, on all visible devices: leave device at auto, and "
            "choose GPUs with CUDA_VISIBLE_DEVICES."
        )
    return device


def _refuse_length_switches(checkpoint: Checkpoint) -> None:
    """Raise `LoadError` where rotary angles depend on the length of a row: vLLM has one set of angles for all rows.

    vLLM uses the long factors of LongRoPE for every row if its maximum length is beyond the short one, and scales dynamic NTK
    for the maximum length.
    """
    sides = LengthClasses.of_config(checkpoint.network.config)
    longest = max([checkpoint.policy.max_tokens, *_probe_lengths(checkpoint)])
    crossed = [limit for limit in sides.fixed if limit < longest]
    if crossed:
        raise LoadError(
            f"in this model rotary angles depend on whether a row is longer than {crossed[0]} tokens (LongRoPE), but vLLM uses "
            f"one set for all rows: shorter rows would get other scores. Set max_input_tokens={crossed[0]}, or "
            "backend=torch."
        )
    if sides.growing_from < math.inf:
        raise LoadError(
            "in this model rotary angles depend on the length of a row (dynamic NTK), but vLLM uses one set for all rows: "
            "rows would get other scores. Set backend=torch."
        )


def _start(checkpoint: Checkpoint, spec: ModelSpec, max_tokens: int) -> VllmScorer:
    """Start an engine and return its scorer. Raise `LoadError`, after which no process is left."""
    network = checkpoint.network
    with ExitStack() as undo:
        reaper = ProcessReaper()
        undo.callback(reaper.close)
        loop = EventLoopThread()
        undo.callback(loop.close)
        with _readable(checkpoint, reaper) as folder:
            wanted = api.EngineSpec(
                folder=folder,
                dtype=str(network.backbone.dtype).removeprefix("torch."),
                max_tokens=max([max_tokens, *_probe_lengths(checkpoint)]),
                keeps_prefixes=spec.prefix_cache_bytes > 0,
                one_by_one=spec.deterministic,
                options=spec.vllm,
            )
            try:
                engine: api.VllmEngine = loop.submit(api.start(wanted, reaper.end)).result()
            except Exception as error:
                raise api.load_error(error, wanted) from error
        undo.pop_all()
    return VllmScorer(
        engine,
        loop,
        network.head_names,
        _biases(checkpoint),
        max_tokens=max_tokens,
        shares=wanted.keeps_prefixes and not wanted.one_by_one,
        stall_timeout_s=spec.vllm.stall_timeout_s,
        after=reaper.close,
    )


def _probe_lengths(checkpoint: Checkpoint) -> list[int]:
    """Lengths of the probes: they are scored even where the operator's limit is shorter."""
    return [len(probe.ids) for probe in checkpoint.contract.probes] if checkpoint.contract else []


def _biases(checkpoint: Checkpoint) -> list[float]:
    """Biases of the heads, which vLLM does not add: a folder whose head has a bias is converted without it."""
    biases: list[float] = checkpoint.network.bias_H.tolist()
    return biases


@contextmanager
def _readable(checkpoint: Checkpoint, reaper: ProcessReaper) -> Iterator[Path]:
    """Folder that vLLM loads, with a label for each head: the checkpoint's, or a temporary one. Raise `LoadError`."""
    if is_readable(checkpoint):
        yield checkpoint.folder
        return
    folder = Path(tempfile.mkdtemp(prefix="rewardserve-vllm-"))
    reaper.remove(folder)
    try:
        with as_load_errors():
            try:
                write_labels(folder, load_weights(checkpoint).network)
            except OSError as error:
                raise CheckpointError(
                    f"{checkpoint.folder} ({checkpoint.format}) could not be converted for vLLM: {error.strerror}. Set TMPDIR "
                    "to a folder that can hold all of its weights."
                ) from error
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_readable(checkpoint: Checkpoint) -> bool:
    """Whether vLLM loads this checkpoint as it is, and returns every head."""
    network = checkpoint.network
    # vLLM must not read tensors for which the checkpoint's class has no place.
    if not has_own_weights(checkpoint.folder) or bool(network.bias_H.any()) or checkpoint.left_out:
        return False
    if checkpoint.format == "sequence_classification":
        return True
    # In our layout with several heads, other engines read only their sum.
    return checkpoint.format == "rewardserve" and network.head_weights == (1.0,)


def _identity(checkpoint: Checkpoint, spec: ModelSpec, version: str, device: str) -> Identity:
    network = checkpoint.network
    return Identity(
        name=spec.model or "default",
        architecture=checkpoint.architecture,
        backend="vllm",
        engine=f"vllm {version}",
        dtype=str(network.backbone.dtype).removeprefix("torch."),
        device=device,
        heads=tuple(zip(network.head_names, network.head_weights, strict=True)),
        n_parameters=sum(p.numel() for p in network.parameters()),
        max_tokens=checkpoint.policy.max_tokens,
        vocab_size=checkpoint.policy.vocab_size,
        engine_notes=(*_notes(checkpoint), *checkpoint.notes, *rule_notes(spec, checkpoint)),
        score_position=checkpoint.score_position,
    )


def _notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Notes on this engine for the operator."""
    is_proved = checkpoint.contract is not None and bool(checkpoint.contract.probes)
    notes = {
        _UNPROVED: not is_proved,
        f"{_REWRITTEN} ({checkpoint.format})": not is_readable(checkpoint),
        _NO_DISTANCE: checkpoint.hidden is not None,
    }
    return (*(note for note, applies in notes.items() if applies), *checkpoint.encoder.notes)
