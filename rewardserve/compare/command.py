"""`rewardserve compare MODEL_A MODEL_B FILE`: score a file with two models and print how far they agree.

`rewardserve.exit_codes` has the exit codes.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsError

from rewardserve.compare.agreement import Agreement, Estimate, agreement
from rewardserve.compare.rows import Rows, read_rows
from rewardserve.compare.scoring import NotServable, Scores, find_model, score_samples
from rewardserve.exit_codes import FAILED, INTERRUPTED, SOME_FAILED, USAGE_ERROR
from rewardserve.model.resource_errors import describe_resource_error
from rewardserve.model.text.printable import printable
from rewardserve.service.cli.options import Wording, complain, complain_of_model, from_command_line
from rewardserve.service.errors import RequestRefused
from rewardserve.service.observability import logs
from rewardserve.service.settings import ModelSettings
from rewardserve.training.dataset.feedback import with_noun
from rewardserve.training.settings.validation import ConfigError

PROGRAM = "rewardserve compare"
FIRST = ("device", "dtype", "max_input_tokens")
AS_JSON = "--json"


class CompareSettings(ModelSettings):
    """Score a file with two models, and print their agreement with each other and with the labels of preference pairs."""

    model_a: CliPositionalArg[str] = Field(
        description="model to compare with, such as the one in service: checkpoint folder or hub name; `default`: the embedded "
        "default"
    )
    model_b: CliPositionalArg[str] = Field(
        description="model to compare, such as its successor, written like MODEL_A; differences are MODEL_B minus MODEL_A"
    )
    file: CliPositionalArg[Path] = Field(
        description="preference pairs in any form that training reads, or samples as in POST /score: .jsonl, .json, .csv, "
        ".tsv (each also .gz), .parquet"
    )


def main(arguments: Sequence[str]) -> int:
    """Read the file, score it with one model after the other, print the comparison. Return the exit code."""
    settings = from_command_line(
        CompareSettings,
        PROGRAM,
        [each for each in arguments if each != AS_JSON],
        FIRST,
        without=("model", "ensemble"),
        switches={AS_JSON: "print one JSON object"},
    )
    wording, as_json = Wording(CompareSettings, arguments), AS_JSON in arguments
    logs.configure(settings.log_level, settings.log_format)
    try:
        rows = read_rows(settings.file)
        for which, model in named_models(settings).items():
            find_model(which, model, settings)  # both, before minutes go into the scores of the first
        a, b = (score_samples(settings, which, model, rows.samples) for which, model in named_models(settings).items())
    except NotServable as error:
        complain_of_model(PROGRAM, error.reason, wording, error.which)
        return FAILED
    except RequestRefused as error:
        complain(PROGRAM, [error.message])
        return FAILED
    except (ConfigError, SettingsError) as error:
        complain(PROGRAM, [wording(str(error))])
        return USAGE_ERROR
    except OSError as error:
        complain(PROGRAM, [describe_resource_error(error) or f"{error.filename or 'a file'}: {error.strerror}."])
        return FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        complain(PROGRAM, ["interrupted."])
        return INTERRUPTED
    found = agreement(np.array(a.raw), np.array(b.raw), np.array(rows.prompts), rows.pairs)
    print(json.dumps(as_object(settings.file, rows, a, b, found), indent=2) if as_json else text_of(rows, a, b, found))
    return SOME_FAILED if _print_missing(rows, a, b) else 0


def named_models(settings: CompareSettings) -> dict[str, str]:
    """The two models, by the name of their argument."""
    return {"MODEL_A": settings.model_a, "MODEL_B": settings.model_b}


def _print_missing(rows: Rows, a: Scores, b: Scores) -> bool:
    """Print the number of rows and responses that are not in the comparison. Return whether there are any."""
    messages = []
    if rows.bad:
        messages.append(
            f"{sum(rows.bad.values())} of {with_noun(rows.n_rows, 'row')} left out ({_counts(rows.bad)}): {rows.first_bad}"
        )
    for name, scores in (("A", a), ("B", b)):
        if scores.failed:
            n = sum(scores.failed.values())
            messages.append(f"{name} gave {n} of {len(scores.raw)} responses no score ({_counts(scores.failed)})")
    complain(PROGRAM, messages)
    return bool(messages)


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(found.items()))


# -- output -----------------------------------------------------------------------------------------------------------


def as_object(file: Path, rows: Rows, a: Scores, b: Scores, found: Agreement) -> dict[str, object]:
    """Build the comparison as one JSON object."""
    models = {
        key: {"model": scores.model, "contract": scores.contract, "failed": dict(scores.failed)}
        for key, scores in (("a", a), ("b", b))
    }
    of_file = {"file": str(file), "rows": rows.n_rows, "rows_left_out": dict(rows.bad)}
    return {**of_file, "models": models, **asdict(found)}


def text_of(rows: Rows, a: Scores, b: Scores, found: Agreement) -> str:
    """Format the comparison as lines of text."""
    kind = "labelled pairs" if rows.pairs else "pairs of responses to one prompt"
    lines = [f"{name}  {printable(scores.model)}  {scores.contract}" for name, scores in (("A", a), ("B", b))]
    lines += ["", f"{found.n_pairs:,} {kind}, {found.n_prompts:,} prompts, {found.n_responses:,} distinct responses"]
    if found.accuracy is not None:
        got = found.accuracy
        lines += [
            "",
            f"accuracy of A          {_estimate(got.a)}",
            f"accuracy of B          {_estimate(got.b)}",
            f"B minus A             {_estimate(got.difference, sign='+')}",
            f"right                  both {got.n_both_right:,}, only A {got.n_only_a:,}, only B {got.n_only_b:,}, "
            f"neither {got.n_neither:,}",
        ]
    if found.disagreement is not None:
        lines += ["", f"ordered differently    {_estimate(found.disagreement)} of the pairs"]
    elif found.n_responses > 1:
        lines += ["", f"ordered differently    {_no_pairs(rows)}"]
    lines += [f"rank correlation       {_correlation(found)}"]
    if found.spearman_within is not None:
        lines += [
            f"                       {found.spearman_within:.3f} within a prompt (mean of {found.n_ranked_prompts:,} prompts)"
        ]
    return "\n".join(lines)


def _estimate(found: Estimate, sign: str = "") -> str:
    return f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _no_pairs(rows: Rows) -> str:
    if rows.pairs:
        return "unknown: no pair has both scores"
    return "unknown: no prompt has two responses, so there are no pairs"


def _correlation(found: Agreement) -> str:
    if found.n_responses < 2:
        return f"none ({found.n_responses} responses have the scores of both models)"
    if found.spearman is None:
        return "none (a model gives all the same score)"
    return f"{found.spearman:.3f} over all responses"
