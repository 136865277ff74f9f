"""`rewardserve check CHECKPOINT`: read a checkpoint, verify its contract, and print the facts of its `GET /model`.

`rewardserve.exit_codes` has the exit codes.
"""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence

from rewardserve.arguments import Parser
from rewardserve.exit_codes import FAILED
from rewardserve.model.backends import DEVICES, LoadedModel, LoadError, ModelSpec, load, require_device
from rewardserve.model.calibration import Calibration
from rewardserve.model.default import DEFAULT_MODEL
from rewardserve.model.read_arguments import add_read_arguments, read_arguments, spell_as_flags
from rewardserve.model.text.printable import printable

PROGRAM = "rewardserve check"


def main(arguments: Sequence[str]) -> int:
    """Print the facts of a checkpoint. Return the exit code."""
    parser = Parser(PROGRAM, "Read a checkpoint, verify its contract, and print how a server would score with it.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="",
        metavar="CHECKPOINT",
        help="folder or hub name; empty or `default`: the embedded default",
    )
    parser.add_argument("--device", type=_device, default="auto", help=DEVICES)
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="dtype of the network's weights; auto: as in the contract, or as stored",
    )
    add_read_arguments(parser)
    given = parser.parse_args(arguments)
    spec = ModelSpec(
        model=given.checkpoint,
        device=given.device,
        dtype=given.dtype,
        contract_mode="warn",
        **read_arguments(given),
    )
    try:
        loaded = load("torch", spec)
    except LoadError as error:
        complaint = f"{PROGRAM}: {given.checkpoint or DEFAULT_MODEL} cannot be served: {spell_as_flags(str(error))}"
        print(printable(complaint, keep="\n"), file=sys.stderr)
        return FAILED
    print(printable(describe(loaded), keep="\n"))
    return 0 if loaded.report.holds else FAILED


def _device(name: str) -> str:
    try:
        return require_device(name)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def describe(loaded: LoadedModel) -> str:
    """The facts of a loaded model, one a line."""
    identity, contract, report = loaded.identity, loaded.contract, loaded.report
    calibration = loaded.calibration
    lines = [
        f"model         {identity.name} ({identity.architecture}, {identity.n_parameters:,} parameters, {identity.dtype})",
        f"heads         {', '.join(f'{name} x {weight:.4g}' for name, weight in identity.heads)}",
        f"max tokens    {identity.max_tokens}",
        f"ends with     {contract.end_text!r} {list(contract.end_ids)}, BOS {contract.bos_id}, pad {contract.pad_id}",
        f"score         {identity.score_position}",
        *([f"template date {contract.template_date}"] if contract.template_date else []),
        f"calibration   {calibration_line(calibration)}",
        f"contract      {contract.origin}, {contract.digest}",
        f"golden probes {report.n_probes}, largest difference {report.max_probe_error}",
    ]
    lines += [f"note          {note}" for note in identity.engine_notes]
    lines += [f"BROKEN        {breach}" for breach in report.breaches]
    if contract.origin == "inferred":
        lines.append(
            "note          no scoring_contract.json: the contract is inferred from the files, so it detects no change"
        )
    elif report.holds:
        lines.append("ok            every clause holds")
    return "\n".join(lines)


def calibration_line(calibration: Calibration | None) -> str:
    """Mean, standard deviation and caps, with their source."""
    if calibration is None:
        return "none: rewards are raw"
    caps = [
        f"{name} {cap:.4g}"
        for name, cap in (("low", calibration.cap_low), ("high", calibration.cap_high))
        if cap is not None
    ]
    return (
        f"mean {calibration.mean:.4g}, standard deviation {calibration.std:.4g}, caps {', '.join(caps) or 'none'}; "
        f"{calibration.source}, {calibration.n} samples"
    )
