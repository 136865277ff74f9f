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
from typing import Any, get_args

from rewardserve.arguments import Parser
from rewardserve.exit_codes import FAILED, USAGE_ERROR
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
from rewardserve.model.contract import (
    FILE_NAME,
    N_PROBES,
    ContractUnreadable,
    Truncation,
    read_samples,
    sample_from_dict,
)
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.default import DEFAULT_MODEL
from rewardserve.model.default import FOLDER as DEFAULT_FOLDER
from rewardserve.model.read_arguments import add_read_arguments, read_arguments, spell_as_flags
from rewardserve.model.templates.chat_template import EncodingPolicyError
from rewardserve.model.text.printable import printable
from rewardserve.model.text.text_files import error_reason
from rewardserve.signals import sigterm_as_sigint

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
    folder = None if given.folder is None else Path(given.folder)
    if folder is not None and (why := _unusable(folder)):
        parser.error(why)
    is_default = given.checkpoint == DEFAULT_MODEL
    if is_default and folder is None:
        parser.error(f"name the FOLDER to write {DEFAULT_MODEL} into; its contract belongs to the installed package")
    path = str(DEFAULT_FOLDER) if is_default else given.checkpoint
    options = ReadOptions(
        dtype="float32",
        **read_arguments(given),
    )
    try:
        given_probes = read_samples(Path(given.probes)) if given.probes else None
    except (OSError, ValueError) as error:
        reason = f"{given.probes}: {error_reason(error)}" if isinstance(error, OSError) else error
        print(printable(f"{PROGRAM}: --probes: {reason}"), file=sys.stderr)
        return USAGE_ERROR
    try:
        source = resolve(path, allow_pickle=options.allow_pickle)
        probes = _probes(source) if given_probes is None else given_probes
        if folder is None:
            print(f"contract      {rewrite_contract(source, probes, options)}")
        else:
            checkpoint = read(path, options)
            with sigterm_as_sigint():
                print(f"contract      {export(checkpoint, folder, probes)}")
            print(f"checkpoint    {folder}")
    except (
        CheckpointError, ContractUnreadable, CalibrationError, EncodingPolicyError, SampleError, OSError, ValueError
    ) as error:  # fmt: skip
        complaint = f"{PROGRAM}: {given.checkpoint} cannot be exported: {spell_as_flags(str(error))}"
        print(printable(complaint, keep="\n"), file=sys.stderr)
        return FAILED
    return 0


def export(checkpoint: Checkpoint, folder: Path, probes: Sequence[Sample]) -> str:
    """Write a checkpoint in our layout and return its contract's digest. Raise `CheckpointError` if its scores differ."""
    if why := _unusable(folder):
        raise CheckpointError(why)
    for step in (without_bias, with_whole_tokenization, with_openrlhf_note):
        checkpoint, note = step(checkpoint)
        if note:
            print(printable(f"note          {note}"))
    try:
        return _write_checked(checkpoint, folder, probes)
    except BaseException:
        _empty(folder)
        raise


def _unusable(folder: Path) -> str:
    """Why a checkpoint cannot be written there; empty if it can."""
    try:
        if folder.exists() and not folder.is_dir():
            return f"{folder} is a file: choose another folder"
        return f"{folder} is not empty: choose another folder" if folder.is_dir() and any(folder.iterdir()) else ""
    except OSError as error:
        return f"{folder} cannot be read: {error.strerror}"


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
    if not isinstance(limits.get("max_tokens", 0), int) or limits.get("truncation", "error") not in get_args(
        Truncation
    ):
        raise ContractUnreadable(
            f"{FILE_NAME}: max_tokens or truncation has another type. Delete the file, and export again"
        )
    options = replace(
        options,
        ending=options.ending or old.get("ending"),
        reads_at=options.reads_at or old.get("reads_at"),
        template_date=options.template_date or old.get("template_date"),
    )
    return write_contract(folder, probes=probes, options=options, **limits).digest


def _probes(folder: Path) -> list[Sample]:
    plain = [Sample(prompt=prompt, response=response) for prompt in _PROMPTS for response in _RESPONSES]
    try:
        return [sample_from_dict(probe["sample"]) for probe in _old_contract(folder).get("probes", [])] or plain[
            :N_PROBES
        ]
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ContractUnreadable(
            f"{FILE_NAME}: a probe is no sample as in POST /score. Name others with --probes, or delete the file"
        ) from None


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
