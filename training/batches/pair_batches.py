"""Batch items into one forward with each distinct sequence once, and choose the items of a batch.

A text that several items of the batch share is one sequence, and each of them reads its score. The sequences lie in one packed
row, or are the rows of a left-padded rectangle. Shapes: P items, B distinct sequences, T tokens, K responses of an item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from rewardserve.model.common_prefix import row_key
from rewardserve.model.padding import left_pad
from rewardserve.training.batches.members import Shares
from rewardserve.training.batches.packed_rows import pack
from rewardserve.training.dataset.feedback import Item, kinds_of, n_ties
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.settings.optim_config import OptimConfig

Batch = dict[str, Any]
"""Tensors by name; `packed` is a `PackedRows`."""
Rows = Callable[[Sequence[int]], Batch]
"""Sequence numbers -> inputs of the network: `input_ids` with `attention_mask` or with `packed`."""


class PairNumbers(Dataset[int]):
    """Pairs of a table by number; the collator looks them up."""

    def __init__(self, n_pairs: int) -> None:
        self._n_pairs = n_pairs

    def __len__(self) -> int:
        """Number of pairs."""
        return self._n_pairs

    def __getitem__(self, number: int) -> int:
        """Return the number unchanged."""
        return number


def token_rows(table: FeedbackTable, pad_id: int) -> Rows:
    """Sequences as the rows of a rectangle, padded on the left."""

    def rows(numbers: Sequence[int]) -> Batch:
        ids_BT, mask_BT = left_pad([table.sequences[n].ids for n in numbers], pad_id)
        return {"input_ids": ids_BT, "attention_mask": mask_BT}

    return rows


def packed_rows(table: FeedbackTable, *, shares_prefixes: bool) -> Rows:
    """Sequences in one row without padding, their common prefixes once."""

    def rows(numbers: Sequence[int]) -> Batch:
        ids_1N, packed = pack([table.sequences[n].ids for n in numbers], shares_prefixes=shares_prefixes)
        return {"input_ids": ids_1N, "packed": packed}

    return rows


def cached_rows(numbers: Sequence[int]) -> Batch:
    """Sequence numbers as rows of one, for a network over cached features."""
    rows_B1 = torch.tensor(numbers, dtype=torch.int64)[:, None]
    return {"input_ids": rows_B1, "attention_mask": torch.ones_like(rows_B1)}


class Collator:
    """Numbers of items -> a batch. `chosen` and `rejected` are the rows of each pair; of another kind, its first and last rows.

    Where the table has other kinds, `rows` are those of all responses (P, K) and `values` their values, -inf beyond the last
    response; `<kind>` are the places of the items of each kind. `tie` and `flip` are there if an item has one.
    An item is in the batch once for each output that it trains: its head, or members of an ensemble by `outputs`.
    With twins, `twin_original` and `twin` are the rows of each, `twin_pair` the place of its pair in the batch, and `twin_share`
    one over the number of twins of that pair. `variables` has those of each row.
    With `reads_tokens`, `token_at` are the places in the flattened `input_ids` before each token of a preferred response,
    `token` those tokens, `token_row` the number of the response, and `token_weight` the weight of each response.
    """

    def __init__(
        self, table: FeedbackTable, outputs: Sequence[Shares], rows: Rows, *, reads_tokens: bool = False
    ) -> None:
        self._table, self._rows, self._outputs, self._reads_tokens = table, rows, outputs, reads_tokens
        self._kinds = kinds_of(table.items)
        self._has_ties = n_ties(table.items) > 0
        self._has_flips = any(item.flip for item in table.items)
        self._twins_of: dict[int, list[int]] = {}
        for original, twin in table.twins:
            self._twins_of.setdefault(original, []).append(twin)

    def __call__(self, numbers: Sequence[int]) -> Batch:
        """Build one batch; every distinct sequence is one row, in the order of first use."""
        trained = [(n, output, share) for n in numbers for output, share in self._outputs[n]]
        numbers = [n for n, _, _ in trained]
        items, sides = [self._table.items[n] for n in numbers], [self._table.rows[n] for n in numbers]
        row_of: dict[int, int] = {}
        chosen = [row_of.setdefault(side[0], len(row_of)) for side in sides]
        rejected = [row_of.setdefault(side[-1], len(row_of)) for side in sides]
        twins = [
            (place, row_of[number], row_of.setdefault(twin, len(row_of)))
            for place, side in enumerate(sides)
            for number in side
            for twin in self._twins_of.get(number, ())
        ]
        others = self._others(items, [[row_of.setdefault(s, len(row_of)) for s in side] for side in sides])
        batch = {
            **self._rows(list(row_of)),
            "chosen": torch.tensor(chosen),
            "rejected": torch.tensor(rejected),
            "head": torch.tensor([output for _, output, _ in trained]),
            "margin": torch.tensor([item.margin for item in items]),
            "weight": torch.tensor([self._table.items[n].weight * share for n, _, share in trained]),
            "pair": torch.tensor(numbers),
            **others,
        }
        if self._table.twins:
            pair_T, original_T, twin_T = torch.tensor(twins, dtype=torch.int64).reshape(-1, 3).unbind(1)
            share_T = 1.0 / torch.bincount(pair_T, minlength=len(numbers))[pair_T]
            batch |= {"twin_pair": pair_T, "twin_original": original_T, "twin": twin_T, "twin_share": share_T}
        if self._reads_tokens:
            batch |= self._tokens(batch, items, sides)
        if self._table.sequences[0].variables:
            # A twin that is in no pair has no variables, and no moment reads its row.
            width = len(self._table.sequences[0].variables)
            values = [self._table.sequences[n].variables or (0.0,) * width for n in row_of]
            batch["variables"] = torch.tensor(values)
        return batch

    def _tokens(self, batch: Batch, items: Sequence[Item], sides: Sequence[Sequence[int]]) -> Batch:
        weight_of: dict[tuple[int, int], float] = {}
        each = zip(items, sides, batch["chosen"].tolist(), batch["weight"].tolist(), strict=True)
        for item, side, row, weight in each:
            if item.kind == "pairs" and item.values[0] > item.values[1]:
                weight_of[side[0], row] = weight_of.get((side[0], row), 0.0) + weight
        at, tokens, rows = list[int](), list[int](), list[int]()
        for place, (sequence, row) in enumerate(weight_of):
            ids = self._table.sequences[sequence].ids
            n = min(self._table.sequences[sequence].n_response, len(ids) - 1)
            at += token_places(batch, row, n + 1)[:n]
            tokens += ids[len(ids) - n :]
            rows += [place] * n
        return {
            "token_at": torch.tensor(at, dtype=torch.int64),
            "token": torch.tensor(tokens, dtype=torch.int64),
            "token_row": torch.tensor(rows, dtype=torch.int64),
            "token_weight": torch.tensor(list(weight_of.values())),
        }

    def _others(self, items: Sequence[Item], rows: Sequence[Sequence[int]]) -> Batch:
        found: Batch = {}
        if self._has_flips:
            found["flip"] = torch.tensor([item.flip for item in items])
        if self._has_ties:
            found["tie"] = torch.tensor([item.values[0] == item.values[-1] for item in items])
        if self._kinds != ("pairs",):
            width = max(map(len, rows))
            found["rows"] = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
            found["values"] = torch.tensor([[*i.values, *[-inf] * (width - len(i.values))] for i in items])
            for kind in self._kinds:
                found[kind] = torch.tensor([p for p, i in enumerate(items) if i.kind == kind], dtype=torch.int64)
        return found


def token_places(batch: Batch, row: int, n: int) -> list[int]:
    """Places of the last `n` tokens of a row in the flattened `input_ids`: of a packed row, or of rows padded on the left."""
    if "packed" in batch:
        return [i for first, last in batch["packed"].spans_B[row] for i in range(first, last)][-n:]
    end = (row + 1) * batch["input_ids"].shape[1]
    return list(range(end - n, end))


class PairBatches(Sampler[list[int]]):
    """Batches of pair numbers; their order is a function of the seed and the epoch alone.

    The number of batches is the same every epoch and divisible by `n_ranks`: ranks with an unequal number of steps would
    wait for each other for ever. Among the batches of one rank whose gradients make one step, items are ordered by their tokens:
    those with a common prefix share a batch, and the items of the step stay.
    """

    def __init__(self, table: FeedbackTable, config: OptimConfig, *, seed: int, n_ranks: int = 1) -> None:
        self._n_pairs, self._config, self._seed = len(table), config, seed
        self._epoch = 0
        self._packed = pack_groups(table, config.batch_sequences, seed) if config.batching == "grouped" else None
        self._of_repeat = _numbers_by_repeat(table)
        n_drawn = (
            sum(round(repeat * len(numbers)) for repeat, numbers in self._of_repeat) if self._of_repeat else len(table)
        )
        n = len(self._packed) if self._packed is not None else -(-n_drawn // config.batch_pairs)
        self._n_batches = -(-n // n_ranks) * n_ranks
        self._n_ranks, self._table = n_ranks, table

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Number of batches in an epoch, over all ranks."""
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of this epoch."""
        first: list[list[int]] = []
        n = 0
        for batch in self._batches(np.random.default_rng([self._seed, self._epoch])):
            first += [batch] if n < self._n_ranks else []
            n += 1
            yield batch
        yield from (first[i % n] for i in range(n, self._n_batches))

    def _batches(self, rng: np.random.Generator) -> Iterator[list[int]]:
        if self._packed is not None:
            yield from (self._packed[i] for i in rng.permutation(len(self._packed)))
            return
        order, size, n_together = self._drawn(rng), self._config.batch_pairs, self._config.accumulate * self._n_ranks
        for begin in range(0, len(order), size * n_together):
            numbers = order[begin : begin + size * n_together].tolist()
            batches = [numbers[i : i + size] for i in range(0, len(numbers), size)]
            if self._config.accumulate > 1:
                for rank in range(min(self._n_ranks, len(batches))):
                    batches[rank :: self._n_ranks] = self._ordered(batches[rank :: self._n_ranks])
            yield from batches

    def _ordered(self, batches: Sequence[list[int]]) -> list[list[int]]:
        """The same items, such that those whose sequences have a common prefix are neighbours."""
        numbers = iter(sorted((n for batch in batches for n in batch), key=self._prefix_key))
        return [list(islice(numbers, len(batch))) for batch in batches]

    def _prefix_key(self, number: int) -> bytes:
        return min(row_key(self._table.sequences[n].ids) for n in self._table.rows[number])

    def _drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Numbers of the items of this epoch, in random order."""
        if not self._of_repeat:
            return rng.permutation(self._n_pairs)
        drawn: list[int] = []
        for repeat, numbers in self._of_repeat:
            whole, n_more = numbers * int(repeat), round(repeat * len(numbers)) - int(repeat) * len(numbers)
            drawn += whole + rng.choice(numbers, n_more, replace=False).tolist()
        return rng.permutation(drawn)


def _numbers_by_repeat(table: FeedbackTable) -> list[tuple[float, list[int]]]:
    """Items of each source and repeat, by number; empty where an epoch has each item once."""
    if all(item.repeat == 1 for item in table.items):
        return []
    found: dict[tuple[str, float], list[int]] = {}
    for number, item in enumerate(table.items):
        found.setdefault((item.source, item.repeat), []).append(number)
    return [(repeat, numbers) for (_, repeat), numbers in found.items()]


def pack_groups(table: FeedbackTable, max_sequences: int, seed: int) -> list[list[int]]:
    """Batches that keep the pairs of a group together, at most `max_sequences` distinct sequences each.

    Groups are packed into batches one after the other, in a random order. The assignment of groups to batches is fixed;
    from epoch to epoch only the order of the batches changes.
    """
    of_group: dict[str, list[int]] = {}
    for number, item in enumerate(table.items):
        of_group.setdefault(item.group, []).append(number)
    units = [unit for pairs in of_group.values() for unit in _tiles(table, pairs, max_sequences)]
    batches: list[list[int]] = []
    in_batch: set[int] = set()
    for i in np.random.default_rng(seed).permutation(len(units)):
        needs = _sequences_of(table, units[i])
        if batches and len(in_batch | needs) <= max_sequences:
            batches[-1].extend(units[i])
            in_batch |= needs
        else:
            batches.append(list(units[i]))
            in_batch = needs
    return batches


def _tiles(table: FeedbackTable, pairs: Sequence[int], max_sequences: int) -> list[list[int]]:
    """Split a group that is too large into tiles of its matrix of comparisons, half the budget a side."""
    if len(_sequences_of(table, pairs)) <= max_sequences:
        return [list(pairs)]
    place = {s: i // (max_sequences // 2) for i, s in enumerate(sorted(_sequences_of(table, pairs)))}
    tiles: dict[tuple[int, ...], list[int]] = {}
    for n in pairs:
        tiles.setdefault(tuple(sorted({place[s] for s in table.rows[n]})), []).append(n)
    return list(tiles.values())


def _sequences_of(table: FeedbackTable, items: Sequence[int]) -> set[int]:
    return {s for n in items for s in table.rows[n]}
