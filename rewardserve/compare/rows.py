"""Read the responses of a file: preference pairs in every form that training reads, samples as in `POST /score`, or captured ones.

Captured ones are lines of `rewardserve review export`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewardserve.model.conversation import InvalidMessages, Sample, SampleError
from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.service.api.requests import SampleIn, to_sample
from rewardserve.service.api.validation import NO_SUCH_FIELD, check
from rewardserve.service.errors import InvalidJson, RequestRefused
from rewardserve.training.dataset import data, sources
from rewardserve.training.dataset.feedback import with_noun
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.validation import ConfigError

_EXPORTED = {"prompt", "response", "prompt_key", "evidence"}
"""Fields of every line of `rewardserve review export`; a sample of `POST /score` has no `evidence`."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The distinct responses of a file. `prompts` has the number of each response's prompt.

    `pairs` are `(chosen, rejected, prompt)` by number; empty if the rows are responses without labels. `bad` counts
    invalid rows by kind of error; `first_bad` is the error of the first one.
    """

    samples: tuple[Sample, ...]
    prompts: tuple[int, ...]
    pairs: tuple[tuple[int, int, int], ...]
    n_rows: int
    bad: Mapping[str, int]
    first_bad: str = ""


class _Numbers:
    """Numbers for distinct values, in the order of their first appearance."""

    def __init__(self) -> None:
        self.of: dict[Hashable, int] = {}

    def __call__(self, value: Hashable) -> int:
        return self.of.setdefault(value, len(self.of))


def read_rows(path: Path) -> Rows:
    """Read the rows of a file. Raise `ConfigError` if it cannot be read, or if it has fewer than two responses to compare."""
    if not path.is_file():
        raise ConfigError(f"{path} is not a file.")
    source = SourceConfig(str(path), margin_key=None, source_key=None)
    rows = list(sources.read(source))
    columns = {name for row in rows for name in row.values or ()}
    if len(labels := columns & {"chosen", "rejected"}) == 1:
        (missing,) = {"chosen", "rejected"} - labels
        raise ConfigError(
            f"{path}: its rows have {labels.pop()} without {missing}{did_you_mean(missing, columns - labels)}."
        )
    is_labelled = any(row.values is not None and {"chosen", "rejected"} <= row.values.keys() for row in rows)
    found = _pairs(source) if is_labelled else _responses(rows)
    if not found.samples:
        raise ConfigError(
            f"{path}: none of the {with_noun(len(rows), 'row')} can be scored. {found.first_bad or 'It is empty.'} "
            "A row must have chosen and rejected, or be a sample as in POST /score."
        )
    if len(found.samples) == 1:
        raise ConfigError(
            f"{path} has no pair to compare: its {with_noun(found.n_rows, 'row')} gave one response. Models are compared by the "
            f"order of two responses at least. {found.first_bad}".rstrip()
        )
    return found


def _pairs(source: SourceConfig) -> Rows:
    read = data.read_source(source, head="")
    sample_number, prompt_number = _Numbers(), _Numbers()
    pairs = []
    for pair in read.pairs:
        prompt = prompt_number(pair.group)
        chosen, rejected = (sample_number((prompt, sample)) for sample in (pair.chosen, pair.rejected))
        pairs.append((chosen, rejected, prompt))
    bad = Counter(f"no pair: {row.field}" for row in read.bad)
    return _rows(sample_number, pairs, read.n_rows, bad, str(read.bad[0]) if read.bad else "")


def _responses(rows: Sequence[sources.SourceRow]) -> Rows:
    sample_number, prompt_number = _Numbers(), _Numbers()
    bad: Counter[str] = Counter()
    first_bad = ""
    for row in rows:
        try:
            sample = _sample(row)
            prompt = prompt_number(_prompt(sample))
        except (SampleError, RequestRefused) as error:
            bad[error.code] += 1
            first_bad = first_bad or f"{row.file}:{row.line}: {error.message}"
        else:
            sample_number((prompt, sample))
    return _rows(sample_number, [], len(rows), bad, first_bad)


def _sample(row: sources.SourceRow) -> Sample:
    """Read the sample of a row. Raise `SampleError` or `RequestRefused`."""
    if row.values is None:
        raise InvalidJson(row.error)
    filled: dict[str, Any] = {name: value for name, value in row.values.items() if value is not None}
    if filled.keys() >= _EXPORTED:
        filled = _of_export(filled)
    sample = to_sample(check(filled, SampleIn, NO_SUCH_FIELD))
    if isinstance(sample, SampleError):
        raise sample
    return sample


def _of_export(line: Mapping[str, Any]) -> dict[str, Any]:
    """A captured sample as a request has it. Raise `SampleError` for one that the client rendered."""
    if isinstance(line["prompt"], str):
        raise InvalidMessages(
            "the prompt of a captured sample is text that the client rendered, so its turns are not known"
        )
    ending = {"finish_reason": "length"} if line.get("missing_end") else {}
    return {"prompt": line["prompt"], "response": line["response"], **ending}


def _prompt(sample: Sample) -> Hashable:
    """Return a key that is equal for responses to one prompt. Text and token ids have no known prompt: each is its own group."""
    if sample.text is not None or sample.input_ids is not None:
        return sample
    return sample.conversation()[:-1]


def _rows(
    sample_number: _Numbers, pairs: Sequence[tuple[int, int, int]], n_rows: int, bad: Mapping[str, int], first_bad: str
) -> Rows:
    numbered: list[Any] = list(sample_number.of)
    return Rows(
        samples=tuple(sample for _, sample in numbered),
        prompts=tuple(prompt for prompt, _ in numbered),
        pairs=tuple(pairs),
        n_rows=n_rows,
        bad=bad,
        first_bad=first_bad,
    )
