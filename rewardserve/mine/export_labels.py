"""`rewardserve export-labels DATABASE`: the labels of a review store as an audit queue that `train --counterexamples` reads."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rewardserve.arguments import Parser
from rewardserve.exit_codes import FAILED
from rewardserve.model.text.printable import printable
from rewardserve.service.review.errors import ReviewStoreError
from rewardserve.service.review.records import LabelledPair, OrderedVerdict, SampleRecord, Turn
from rewardserve.service.review.store import ReviewStore, is_missing
from rewardserve.training.dataset.counterexamples import QueueResponse, queue_id

PROGRAM = "rewardserve export-labels"
_DESCRIPTION = """Print the labels of a review store as JSON Lines, a row a pair, as rewardserve train --counterexamples reads them:
prompt, responses a and b in the order of their capture, verdict, and where the row comes from. Pairs whose annotators disagree,
and those that all skipped, are left out and counted."""

_VERDICTS: Mapping[OrderedVerdict, str] = {"earlier": "a", "later": "b", "tie": "tie", "both_bad": "both_bad"}


def main(arguments: Sequence[str]) -> int:
    """Print the labels. Return the exit code."""
    parser = Parser(PROGRAM, _DESCRIPTION)
    parser.add_argument("database", metavar="DATABASE", help="path of a SQLite file, or URL of a Postgres database")
    parser.add_argument("--run", metavar="LABEL", help="labels of this run only; default: all runs")
    given = parser.parse_args(arguments)
    if is_missing(given.database):
        parser.error(f"{given.database}: no such file")
    left_out: Counter[str] = Counter()
    n = 0
    try:
        store = ReviewStore.open(given.database)
        try:
            for pair in store.labels.labelled(given.run):
                row = row_of(pair)
                if isinstance(row, str):
                    left_out[row] += 1
                else:
                    print(json.dumps(row))
                    n += 1
        finally:
            store.close()
    except ReviewStoreError as error:
        print(printable(f"{PROGRAM}: {error}"), file=sys.stderr)
        return FAILED
    rest = "".join(f", {count} {reason}" for reason, count in sorted(left_out.items()))
    print(f"{PROGRAM}: {n} labelled pairs{rest}", file=sys.stderr)
    return 0


def row_of(pair: LabelledPair) -> dict[str, Any] | str:
    """The row of a pair, or the reason why there is none."""
    given = {name: verdict for name, verdict in pair.verdicts.items() if verdict != "skip"}
    if not given:
        return "skipped"
    if len(set(given.values())) > 1:
        return "on which annotators disagree"
    verdict = next(iter(given.values()))
    prompt = (
        pair.earlier.prompt if isinstance(pair.earlier.prompt, str) else [_turn(each) for each in pair.earlier.prompt]
    )
    a, b = _response(pair.earlier), _response(pair.later)
    return {
        "id": queue_id(prompt, a, b),
        "prompt": prompt,
        "a": a.text,
        "b": b.text,
        "a_finish_reason": a.finish_reason,
        "b_finish_reason": b.finish_reason,
        "verdict": _VERDICTS[verdict],
        "labelled_by": ", ".join(sorted(given)),
        "labelled_at": None,
        "run": pair.run,
        "sampling": pair.sampling,
        "samples": [pair.earlier_id, pair.later_id],
        "model": pair.later.model,
        "model_version": pair.later.model_version,
    }


def _turn(turn: Turn) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content}


def _response(sample: SampleRecord) -> QueueResponse:
    return QueueResponse(sample.response, "length" if sample.missing_end else "stop")
