"""Read labelled counterexamples: rows of an audit queue with their verdicts, or pairs with chosen and rejected.

A row of a queue has `prompt`, the responses `a` and `b` in random order, `a_finish_reason` and `b_finish_reason`, and `id`, the
digest of these, so a changed text is noticed. An annotator fills in `verdict`, and may fill in `labelled_by` and `labelled_at`;
several annotators make several rows of one id. Nothing without a verdict is trained on. Independent of tokenizers and torch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rewardserve.model.conversation import FinishReason
from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.training.dataset import data, source_columns, sources
from rewardserve.training.dataset.conversations import FieldError, read_finish_reason
from rewardserve.training.dataset.data import BadRow, DataError, Split
from rewardserve.training.dataset.feedback import Graded, Item, Pair, n_ties, with_noun
from rewardserve.training.dataset.leakage import prompt_key
from rewardserve.training.dataset.pairs import to_pair
from rewardserve.training.dataset.row_counts import N_ROWS
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.dataset.sources import SourceRow
from rewardserve.training.settings.data_config import CounterexamplesConfig, DataConfig, SourceConfig
from rewardserve.training.settings.validation import ConfigError, shown

SOURCE = "counterexamples"
"""Name of these pairs in reports."""

VERDICTS = ("a", "b", "tie", "both_bad", "skip")
_BOTH_BAD, _SKIPPED = "both bad", "skipped by all annotators"
_UNLABELLED, _CONTRADICTING = "without a verdict", "with contradicting verdicts"
_N_SHOWN = 20


class MinedMargins(NamedTuple):
    """Chosen less rejected, of the scores with which a pair was mined. A control was drawn whatever its scores."""

    model: float
    judge: float
    is_control: bool


@dataclass(frozen=True, slots=True)
class Labelled:
    """The pairs of a file, and its other rows by reason.

    `mined`: by the id of a pair, the scores with which it was mined. `bad`: labels of responses in rows that have both bad.
    """

    path: str
    n_rows: int
    pairs: tuple[Pair, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    mined: Mapping[str, MinedMargins] = field(default_factory=dict)
    bad: tuple[Graded, ...] = ()

    def __str__(self) -> str:
        """Describe the file as a line of the summary."""
        ties = n_ties(self.pairs)
        others = {**({"ties": ties} if ties else {}), **self.left_out}
        others |= {"bad labels, of rows whose responses are both bad": len(self.bad)} if self.bad else {}
        rest = "".join(f", {n:,} {reason}" for reason, n in others.items())
        return f"{with_noun(self.n_rows, 'row')}, {with_noun(len(self.pairs) - ties, 'pair')} with a preference{rest}"


class QueueResponse(NamedTuple):
    """A response of a row."""

    text: str
    finish_reason: FinishReason = "stop"


def queue_id(prompt: str | Sequence[Mapping[str, str]], first: QueueResponse, second: QueueResponse) -> str:
    """The id of a row: a digest of the prompt, of both responses whatever their order, and of which were cut off."""
    cut = sorted(each.text for each in (first, second) if each.finish_reason == "length")
    content = json.dumps([prompt, *sorted((first.text, second.text)), *([cut] if cut else [])], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def scores_path(queue: Path) -> Path:
    """The file beside a queue that has the scores of its pairs by id, so that annotators do not see them."""
    return queue.with_name(f"{queue.stem}.scores.jsonl")


def read(config: CounterexamplesConfig, recipe: DataConfig, head: str) -> Labelled:
    """Read a file of counterexamples. Raise `ConfigError` or `DataError`."""
    source = SourceConfig(
        config.path,
        name=SOURCE,
        head=config.head,
        weight=config.weight,
        # A recipe whose prompts are joined without a template has no template for these either.
        strings="raw" if all(each.strings == "raw" for each in recipe.sources) else "turn",
        group_key=None,
        source_key=None,
        margin_key=None,
    )
    rows = list(sources.read(source))
    if any("verdict" in row.values for row in rows if row.values is not None):
        labelled = _of_queue(rows, source, head, labels_bad=config.both_bad == "labels")
    else:
        labelled = _of_pairs(source, recipe.on_bad_row, head)
    if not labelled.pairs:
        raise DataError(
            f"none of the {with_noun(labelled.n_rows, 'row')} of {config.path} prefers one response or is a tie "
            f"({_counts(labelled.left_out)}). Fill in `verdict` with one of {', '.join(VERDICTS)}."
        )
    return labelled


def split(labelled: Labelled, config: CounterexamplesConfig, recipe: DataConfig, main: Split) -> Split:
    """Hold out a share of the prompts, and those of other held-out pairs. Raise `DataError` if none is left to train on."""
    held_prompts = {prompt_key(pair) for pair in main.held_out}

    def is_held(item: Item) -> bool:
        return data.is_held_out(item.group, recipe.salt, config.eval_fraction) or prompt_key(item) in held_prompts

    if all(map(is_held, labelled.pairs)):
        raise DataError(
            f"all {len(labelled.pairs)} counterexamples of {config.path} are held out: their prompts are drawn by "
            f"counterexamples.eval_fraction ({config.eval_fraction:g}), or are those of held-out pairs. Lower it, or label "
            "more prompts."
        )
    items: tuple[Item, ...] = (*labelled.pairs, *labelled.bad)
    return Split(tuple(i for i in items if not is_held(i)), tuple(i for i in items if is_held(i)), ())


def mined_accuracy(labelled: Labelled, held_out: Sequence[Pair]) -> float | None:
    """Accuracy on these pairs of the model for which they were mined; equal scores count half. None if its scores are not known."""
    return _share_right([labelled.mined[pair.id].model for pair in held_out if pair.id in labelled.mined])


def control_accuracy(labelled: Labelled) -> tuple[float, float, int] | None:
    """Accuracy on the controls of the model and of the judge that mined, and their number; None without controls.

    Only these show how good a judge is: in the other pairs it prefers, by choice, the response that is not suspected.
    """
    controls = [each for each in labelled.mined.values() if each.is_control]
    model, judge = (_share_right([each[i] for each in controls]) for i in (0, 1))
    return None if model is None or judge is None else (model, judge, len(controls))


def _share_right(margins: Sequence[float]) -> float | None:
    return sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins) if margins else None


def unused_rows(labelled: Labelled, held_out: FeedbackTable) -> dict[str, int]:
    """Rows by what becomes of them other than training, and all rows under `row_counts.N_ROWS`."""
    counts = {"held out": len(held_out), **labelled.left_out}
    counts["that cannot be compared"] = sum(held_out.dropped.values())
    return {N_ROWS: labelled.n_rows, **{reason: n for reason, n in counts.items() if n}}


def _of_pairs(source: SourceConfig, on_bad_row: str, head: str) -> Labelled:
    """Read preference pairs in any form that training reads."""
    found = data.read_source(replace(source, group_key="group", margin_key="margin"), head=source.head or head)
    if on_bad_row == "raise":
        _refuse_bad(found.bad, found.n_rows, "data.on_bad_row: skip leaves them out.")
    return Labelled(source.path, found.n_rows, found.pairs, _left_out({"without a pair": len(found.bad)}))


def _of_queue(rows: Sequence[SourceRow], source: SourceConfig, head: str, *, labels_bad: bool) -> Labelled:
    """Read a queue: one pair an id with one verdict of all. Raise `DataError` for a bad row, which is lost work.

    `labels_bad`: a row whose responses are both bad makes a label of each.
    """
    bad: list[BadRow] = []
    by_id: dict[str, list[SourceRow]] = {}
    for row in rows:
        try:
            by_id.setdefault(_checked_id(row), []).append(row)
        except FieldError as error:
            bad.append(BadRow(row.file, row.line, error.field, str(error)))
    _refuse_bad(bad, len(rows), "Correct them, or mine the queue again.")
    left_out: Counter[str] = Counter()
    preferred: dict[str, SourceRow] = {}
    both_bad: set[str] = set()
    for number, same in by_id.items():
        found, reason = _preference(same)
        if found is None or (reason == _BOTH_BAD and not labels_bad):
            left_out[reason] += len(same)
        else:
            left_out["more of the same id"] += len(same) - 1
            preferred[number] = found
            if reason == _BOTH_BAD:
                both_bad.add(number)
    columns = source_columns.find_columns(list(preferred.values()), source)
    pairs, mined, labels = [], {}, list[Graded]()
    scores = _read_scores(scores_path(Path(source.path)))
    faulty: list[BadRow] = []
    for number, row in preferred.items():
        try:
            pair = to_pair(row, columns, source.head or head)
        except FieldError as error:
            faulty.append(BadRow(row.file, row.line, error.field, str(error)))
            continue
        if number in both_bad:
            labels += _bad_labels(pair)
            continue
        pairs.append(pair)
        if number in scores and row.values is not None and not pair.tie:
            mined[pair.id] = scores[number].margins(row.values["chosen"], row.values["rejected"])
    _refuse_bad(faulty, len(rows), "Correct them, or set their verdict to skip.")
    return Labelled(source.path, len(rows), tuple(pairs), _left_out(left_out), mined, tuple(labels))


def _bad_labels(pair: Pair) -> Iterator[Graded]:
    """Each response of a pair as a label: bad."""
    for side, sample, text in zip("ab", pair.samples, pair.texts, strict=True):
        yield Graded(
            f"{pair.id}#{side}", pair.source, pair.group, pair.head, "labels", (sample,), (text,), (0.0,), weight=pair.weight
        )  # fmt: skip


def _checked_id(row: SourceRow) -> str:
    """The id of a row. Raise `FieldError` for a row that no queue has, or whose text has changed."""
    if row.values is None:
        raise FieldError(row.field, row.error)
    values = row.values
    for name in ("id", "a", "b"):
        if not isinstance(values.get(name), str) or not values[name]:
            raise FieldError(name, f"is {shown(values.get(name))}; a row of a queue has it as text")
    verdict = values.get("verdict")
    if verdict not in (None, "", *VERDICTS):
        raise FieldError(
            "verdict", f"is {shown(verdict)}; it must be one of {', '.join(VERDICTS)}{did_you_mean(verdict, VERDICTS)}"
        )
    try:
        now = queue_id(values.get("prompt") or "", _side(values, "a"), _side(values, "b"))
    except TypeError:
        now = ""
    if now != values["id"]:
        raise FieldError(
            "id",
            "is not the digest of this prompt and these responses: the text has changed since it was mined, or a_finish_reason or "
            "b_finish_reason",
        )
    return now


def _preference(same: Sequence[SourceRow]) -> tuple[SourceRow | None, str]:
    """The rows of one id as one row with chosen and rejected, or the reason why there is none; both are given for both bad."""
    verdicts = {_meant(row.values) for row in same if row.values is not None} - {None}
    if not verdicts:
        return None, _UNLABELLED
    decided = verdicts - {"skip"}
    if not decided:
        return None, _SKIPPED
    if len(decided) > 1:
        return None, _CONTRADICTING
    (verdict,) = decided
    row = next(row for row in same if row.values is not None and _meant(row.values) == verdict)
    given = row.values or {}
    chosen, rejected = verdict if isinstance(verdict, tuple) else (_side(given, "a"), _side(given, "b"))
    values = {
        "prompt": given.get("prompt"),
        "chosen": chosen.text,
        "chosen_finish_reason": chosen.finish_reason,
        "rejected": rejected.text,
        "rejected_finish_reason": rejected.finish_reason,
        "tie": not isinstance(verdict, tuple),
    }
    return SourceRow(row.file, row.line, values), _BOTH_BAD if verdict == "both_bad" else ""


def _meant(values: Mapping[str, Any]) -> tuple[QueueResponse, QueueResponse] | str | None:
    """The chosen and the rejected response, or the verdict without a preference; None without one."""
    verdict = values.get("verdict")
    if verdict in ("a", "b"):
        return _side(values, verdict), _side(values, "b" if verdict == "a" else "a")
    return verdict or None


def _side(values: Mapping[str, Any], name: str) -> QueueResponse:
    """The response `a` or `b` of a row. Raise `FieldError`."""
    field = f"{name}_finish_reason"
    return QueueResponse(values[name], read_finish_reason(values.get(field), field))


class _MinedScores(NamedTuple):
    """Scores of model and judge by response, of one row."""

    of_response: Mapping[str, tuple[float, float]]
    is_control: bool

    def margins(self, chosen: str, rejected: str) -> MinedMargins:
        high, low = (self.of_response.get(text, (0.0, 0.0)) for text in (chosen, rejected))
        return MinedMargins(high[0] - low[0], high[1] - low[1], self.is_control)


def _read_scores(path: Path) -> dict[str, _MinedScores]:
    """The scores of a queue by id; empty if the file is not there, or is another's."""
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        return {
            row["id"]: _MinedScores(
                {row[s]["response"]: (float(row[s]["model"]), float(row[s]["judge_z"])) for s in ("a", "b")},
                row["kind"] == "control",
            )
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _refuse_bad(bad: Sequence[BadRow], n_rows: int, remedy: str) -> None:
    if bad:
        causes = data.causes_of(bad)
        listed = "\n  ".join(causes[:_N_SHOWN])
        raise DataError(
            f"{len(bad)} of {with_noun(n_rows, 'row')} of the counterexamples cannot be read. {remedy}\n  {listed}"
        )


def _left_out(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: n for reason, n in sorted(counts.items()) if n}


def _counts(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in left_out.items()) or "none is labelled"


def require_file(path: str) -> None:
    """Raise `ConfigError` unless the file exists, before a model is loaded."""
    if not Path(path).is_file():
        raise ConfigError(f"counterexamples.path: {path} is not a file")
    sources.find_reader(SourceConfig(path))
