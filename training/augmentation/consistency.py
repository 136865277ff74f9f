"""Twins of training responses that say the same: each has its sequence in the table, and no label.

Twins are made by the transforms of the recipe, and by the column of paraphrases of the data. Depends on the encoder, not on torch.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.encoding import Encoder
from rewardserve.training.dataset.sequences import FeedbackTable, Ids, TokenSequence
from rewardserve.training.evaluation.invariance import with_known_response
from rewardserve.training.settings.loss_config import ConsistencyConfig
from rewardserve.training.settings.validation import ConfigError
from rewardserve.training.transforms import TRANSFORMS, with_response


def with_twins(table: FeedbackTable, encoder: Encoder, config: ConsistencyConfig, salt: str) -> FeedbackTable:
    """The table with the twins of its responses. Raise `ConfigError` if no response has one."""
    if not config.weight:
        return table
    number_of: dict[Ids, int] = {s.ids: n for n, s in enumerate(table.sequences)}
    sequences = list(table.sequences)
    twins: dict[int, list[int]] = defaultdict(list)
    for original, sample in _wanted(table, config, salt, encoder):
        encoded = _encode(encoder, sample)
        if encoded is None or encoded.ids == table.sequences[original].ids:
            continue
        number = number_of.setdefault(encoded.ids, len(sequences))
        if number == len(sequences):
            sequences.append(encoded)
        if number not in twins[original]:
            twins[original].append(number)
    found = tuple((original, twin) for original, numbers in sorted(twins.items()) for twin in numbers)
    if not found:
        raise ConfigError(
            "consistency.weight would do nothing: no training response has a twin. The transforms "
            f"{', '.join(config.transforms) or '(none)'} change none of them, and no source names a paraphrase_key with texts."
        )
    return replace(table, sequences=tuple(sequences), twins=found)


def _encode(encoder: Encoder, sample: Sample) -> TokenSequence | None:
    """The sequence of a twin; None if it is too long."""
    try:
        encoded = encoder(sample)
    except SampleError:
        return None
    return TokenSequence(encoded.ids, len(encoded.ids) - encoded.n_prompt, sample, encoded.truncated)


def _wanted(
    table: FeedbackTable, config: ConsistencyConfig, salt: str, encoder: Encoder
) -> Iterator[tuple[int, Sample]]:
    """Sequences with their changed samples: paraphrases of the data, and `config.twins` transforms of each response."""
    seen: set[int] = set()
    for pair, (chosen_row, rejected_row) in zip(table.items, table.rows, strict=True):
        chosen = with_known_response(pair, 0)
        if pair.paraphrase and not pair.made:  # augmentation may have changed the response
            paraphrase = pair.paraphrase
            if (twin := with_response(chosen, lambda _, text=paraphrase: text)) is not None:  # type: ignore[misc]
                yield chosen_row, twin
        for number, sample in ((chosen_row, chosen), (rejected_row, with_known_response(pair, 1))):
            if number not in seen:
                seen.add(number)
                yield from ((number, twin) for twin in _transformed(sample, number, config, salt, table, encoder))


def _transformed(
    sample: Sample, number: int, config: ConsistencyConfig, salt: str, table: FeedbackTable, encoder: Encoder
) -> list[Sample]:
    """At most `config.twins` transforms of a sample that give it other ids, in an order that depends on its ids alone."""
    ids = table.sequences[number].ids
    order = sorted(config.transforms, key=lambda name: hashlib.sha256(f"{salt}:{name}:{ids}".encode()).digest())
    found: list[Sample] = []
    for name in order:
        if len(found) == config.twins:
            break
        changed = with_response(sample, TRANSFORMS[name].change)
        encoded = None if changed is None else _encode(encoder, changed)
        if changed is not None and encoded is not None and encoded.ids != ids:
            found.append(changed)
    return found
