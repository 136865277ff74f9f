"""Lists on disk have the elements of lists in memory; tables over them are the same tables."""

from __future__ import annotations

import numpy as np
import pytest

from rewardserve.training.dataset import leakage, row_counts, sequences, source_columns, sources
from rewardserve.training.dataset.disk_list import DiskList, Joined, NumberRows, View, concatenated, picked
from rewardserve.training.dataset.pairs import to_pair
from rewardserve.training.settings.data_config import SourceConfig
from tests.support.tiny import tiny_tokenizer
from tests.unit.training.dataset.test_leakage import encoder, row


def pairs():
    rows = [row(f"Prompt {i % 7}", f"good {i % 5}", f"bad {i % 3}", f"g{i}") for i in range(40)]
    read = [sources.SourceRow("f", i, r) for i, r in enumerate(rows, 1)]
    found = source_columns.find_columns(read, SourceConfig("f"))
    return [to_pair(r, found, "score") for r in read]


def test_an_element_can_be_read_between_two_that_are_appended():
    found = DiskList([{"n": 1}])
    assert found[0] == {"n": 1}
    found.append(("two", None))
    assert list(found) == [{"n": 1}, ("two", None)]
    assert found[-1] == ("two", None)
    with pytest.raises(IndexError):
        found[2]


def test_views_and_joined_lists_have_the_elements_of_tuples():
    whole = tuple(range(20))
    on_disk = DiskList(whole)
    assert tuple(View(View(on_disk, [5, 3, 8]), [2, 0])) == (8, 5)
    assert tuple(on_disk[4:9:2]) == whole[4:9:2]
    assert tuple(picked(on_disk, np.array([7, 1]))) == picked(whole, [7, 1]) == (7, 1)
    both = concatenated(whole[:3], on_disk, ())
    assert isinstance(both, Joined)
    assert tuple(both) == concatenated(whole[:3], whole, ())
    assert both[-1] == 19


def test_rows_of_numbers_are_renumbered():
    rows = NumberRows.of([(4, 9), (), (9, 2, 4)])
    assert list(rows) == [(4, 9), (), (9, 2, 4)]
    assert list(rows.renumbered(np.array([2, 4, 9]))) == [(1, 2), (), (2, 0, 1)]


def test_a_table_on_disk_is_the_one_in_memory():
    encode, items = encoder(tiny_tokenizer(), 120), pairs()
    held = sequences.encode(items[37:], encode)
    tables = [sequences.encode(part, encode) for part in (items[:37], DiskList(items[:37]))]
    (kept, overlap), (kept_on_disk, overlap_on_disk) = [leakage.remove_overlap(table, held) for table in tables]
    assert 0 < len(kept) < 37
    assert overlap_on_disk == overlap
    some = [i % 3 == 0 for i in range(37)]
    of_subsets = [[sequences.subset(t, some, renumber=renumber) for t in tables] for renumber in (True, False)]
    for table, on_disk in (tables, (kept, kept_on_disk), *of_subsets):
        assert tuple(on_disk.items) == table.items
        assert tuple(on_disk.rows) == table.rows
        assert tuple(on_disk.sequences) == table.sequences
        assert on_disk.n_used == table.n_used
        assert row_counts._n_contradicting(on_disk) == row_counts._n_contradicting(table)
