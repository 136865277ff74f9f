"""`rewardserve export CHECKPOINT [FOLDER]`: write a reward model in the layout that other programs load, with its contract.

Without FOLDER only `scoring_contract.json` is written again, beside the weights: after a change of its format, or to bind
a checkpoint of another trainer to the clauses that `rewardserve check` shows. The probes are those of the existing contract,
those of `--probes`, or built-in conversations. The contract of the embedded default belongs to the installed package, so
`default` needs FOLDER.

`rewardserve.exit_codes` has the exit codes.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rewardserve.arguments import Parser
from rewardserve.exit_codes import FAILED
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    ReadOptions,
    read,
    with_openrlhf_note,
    with_whole_tokenization,
    without_bias,
    write,
    write_contract,
)
from rewardserve.model.checkpoint.reading import resolve
from rewardserve.model.checkpoint.writing import score_single_row
from rewardserve.model.contract import FILE_NAME, N_PROBES, ContractUnreadable, read_samples, sample_from_dict
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.default import DEFAULT_MODEL
from rewardserve.model.default import FOLDER as DEFAULT_FOLDER
from rewardserve.model.read_arguments import add_read_arguments, read_arguments, spell_as_flags
from rewardserve.model.templates.chat_template import EncodingPolicyError
from rewardserve.model.text.printable import printable

PROGRAM = "rewardserve export"
_DESCRIPTION = """Write a reward model in the layout that other programs load, with its contract. Without FOLDER only
scoring_contract.json is written again, beside the weights. The golden probes are those of the existing contract, those of
--probes, or built-in conversations."""

TOLERANCE = 1e-4
"""Largest difference of a raw score when the written checkpoint is read back, in float32."""

_PROMPTS = ("Why is the sky blue?", "Name three fruits.", "Write one line about the sea.", "Is 91 a prime number?")
_RESPONSES = (
    "Yes.",
    "I do not know.\nPlease ask somebody else, and tell me what you have learnt!",
    "Apples, pears, and - where I live - plums. 1, 2, 3: that makes three.",
    "Of course. " * 12,
)


def main(arguments: Sequence[str]) -> int:
    """Write the checkpoint, or its contract alone. Return the exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    is_default = given.checkpoint == DEFAULT_MODEL
    if is_default and given.folder is None:
        parser.error(f"name the FOLDER to write {DEFAULT_MODEL} into; its contract belongs to the installed package")
    path = str(DEFAULT_FOLDER) if is_default else given.checkpoint
    options = ReadOptions(
        dtype="float32",
        **read_arguments(given),
    )
    try:
        source = resolve(path, allow_pickle=options.allow_pickle)
        probes = _probes(source, given.probes)
        if given.folder is None:
            print(f"contract      {rewrite_contract(source, probes, options)}")
        else:
            checkpoint = read(path, options)
            print(f"contract      {export(checkpoint, Path(given.folder), probes)}")
            print(f"checkpoint    {given.folder}")
    except (
        CheckpointError, ContractUnreadable, CalibrationError, EncodingPolicyError, SampleError, OSError, ValueError
    ) as error:  # fmt: skip
        complaint = f"{PROGRAM}: {given.checkpoint} cannot be exported: {spell_as_flags(str(error))}"
        print(printable(complaint, keep="\n"), file=sys.stderr)
        return FAILED
    return 0


def export(checkpoint: Checkpoint, folder: Path, probes: Sequence[Sample]) -> str:
    """Write a checkpoint in our layout and return its contract's digest. Raise `CheckpointError` if its scores differ."""
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty: choose another folder")
    for step in (without_bias, with_whole_tokenization, with_openrlhf_note):
        checkpoint, note = step(checkpoint)
        if note:
            print(printable(f"note          {note}"))
    try:
        return _write_checked(checkpoint, folder, probes)
    except BaseException:
        _empty(folder)
        raise


def _write_checked(checkpoint: Checkpoint, folder: Path, probes: Sequence[Sample]) -> str:
    """Write a checkpoint and its contract. Raise `CheckpointError` unless the probes keep their scores."""
    encode, network, policy = checkpoint.encoder, checkpoint.network, checkpoint.policy
    expected = [score_single_row(network, encode(probe).ids) for probe in probes]
    write(
        folder,
        network,
        checkpoint.tokenizer,
        policy=policy,
        calibration=checkpoint.calibration,
        hidden=checkpoint.hidden,
    )
    written = write_contract(
        folder,
        probes=probes,
        max_tokens=policy.max_tokens,
        truncation=policy.truncation,
        options=ReadOptions(ending="template", reads_at="last"),
    )
    worst = max((abs(probe.score - score) for probe, score in zip(written.probes, expected, strict=True)), default=0.0)
    if not worst <= TOLERANCE:
        raise CheckpointError(
            f"{folder} gives other scores when it is read back: a probe is off by {worst:.3g}, {TOLERANCE:.0e} is allowed"
        )
    return written.digest


def _empty(folder: Path) -> None:
    """Remove the files of a failed export: weights without a contract would be served under an inferred one."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def rewrite_contract(folder: Path, probes: Sequence[Sample], options: ReadOptions) -> str:
    """Write the contract of a folder again, with the limits of the existing one, and return its digest."""
    old = _old_contract(folder)
    limits = {key: old[key] for key in ("max_tokens", "truncation") if key in old}
    options = replace(
        options,
        ending=options.ending or old.get("ending"),
        reads_at=options.reads_at or old.get("reads_at"),
        template_date=options.template_date or old.get("template_date"),
    )
    return write_contract(folder, probes=probes, options=options, **limits).digest


def _probes(folder: Path, path: str | None) -> list[Sample]:
    if path is not None:
        return read_samples(Path(path))
    kept = _old_contract(folder).get("probes", [])
    plain = [Sample(prompt=prompt, response=response) for prompt in _PROMPTS for response in _RESPONSES]
    return [sample_from_dict(probe["sample"]) for probe in kept] or plain[:N_PROBES]


def _old_contract(folder: Path) -> dict[str, Any]:
    """The existing contract, in any format; empty where there is none."""
    path = folder / FILE_NAME
    found = json.loads(path.read_text()) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _parser() -> Parser:
    parser = Parser(PROGRAM, _DESCRIPTION)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder or hub name of any reward model that can be served; `default`: the embedded default, with FOLDER only",
    )
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="output folder; default: only the contract, beside the weights"
    )
    parser.add_argument(
        "--probes",
        metavar="FILE",
        help="golden probes: samples in JSON lines, one a line as for POST /score; default: those of the existing contract, "
        "else built-in conversations",
    )
    add_read_arguments(parser)
    return parser
