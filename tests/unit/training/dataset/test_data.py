"""Rows to pairs: every format, every error with its place, and a split that groups survive whole."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.conversation import Message, Sample
from rewardserve.training.dataset import data, source_columns, sources
from rewardserve.training.dataset.conversations import FieldError
from rewardserve.training.dataset.data import DataError, is_held_out
from rewardserve.training.dataset.pairs import to_pair
from rewardserve.training.settings.data_config import DataConfig, SourceConfig
from rewardserve.training.settings.validation import ConfigError
from tests.support.planted_pairs import planted_rows, write_jsonl

USER, CHOSEN, REJECTED = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yes"},
    {"role": "assistant", "content": "no"},
)
PROMPT = (Message("user", "hi"),)


def pair(values, **source):
    return to_pair(
        row := sources.SourceRow("f", 1, values),
        source_columns.find_columns([row], SourceConfig("f", **source)),
        "score",
    )


SAME_PAIR = {
    "explicit strings": {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    "explicit messages": {"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]},
    "our files": {"prompt": [USER], "chosen": "yes", "rejected": "no", "source": "s"},
    "string prompt, messages": {"prompt": "hi", "chosen": [CHOSEN], "rejected": [REJECTED]},
    "prompt repeated in the answers": {"prompt": "hi", "chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
    "implicit messages": {"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
}


@pytest.mark.parametrize("values", SAME_PAIR.values(), ids=SAME_PAIR)
def test_every_conversational_format_gives_the_same_conversations(values):
    got = pair(values)
    assert got.chosen.conversation() == (*PROMPT, Message("assistant", "yes"))
    assert got.rejected.conversation() == (*PROMPT, Message("assistant", "no"))
    assert (got.chosen_text, got.rejected_text) == ("yes", "no")
    assert got.group == pair(SAME_PAIR["explicit strings"]).group


def test_raw_strings_follow_their_prompt_without_a_template():
    got = pair({"prompt": "Q: hi A:", "chosen": " yes", "rejected": " no"}, strings="raw")
    assert got.chosen == Sample(text="Q: hi A: yes", n_prompt_chars=8)
    assert got.rejected == Sample(text="Q: hi A: no", n_prompt_chars=8)


def test_implicit_strings_share_their_beginning_as_prompt():
    turn = "\n\nHuman: hi\n\nAssistant:"
    a = pair({"chosen": f"{turn} I am well", "rejected": f"{turn} I am ill"})
    b = pair({"chosen": f"{turn} Yes", "rejected": f"{turn} No"})
    assert (a.chosen_text, a.rejected_text) == (" I am well", " I am ill")
    assert a.group == b.group


def test_openrlhf_columns_by_setting():
    got = pair(
        {"question": "hi", "good": "yes", "bad": "no"}, prompt_key="question", chosen_key="good", rejected_key="bad"
    )
    assert got.chosen == Sample(prompt=PROMPT, response="yes")


def test_margin_group_source_and_context_are_read():
    got = pair(
        {"prompt": "hi", "chosen": "yes", "rejected": "no", "margin": 2, "group": 7, "source": "s", "context": "C"},
        context="prepend",
    )
    assert (got.margin, got.group, got.source) == (2.0, "7", "s")
    assert got.chosen.prompt == (Message("user", "C\n\nhi"),)


BAD = {
    "equal": ({"prompt": "hi", "chosen": "no", "rejected": "no"}, "rejected"),
    "equal across forms": ({"prompt": "hi", "chosen": [USER, CHOSEN], "rejected": [USER, CHOSEN]}, "rejected"),
    "empty response": ({"prompt": "hi", "chosen": "", "rejected": "no"}, "chosen"),
    "empty prompt": ({"prompt": "", "chosen": "yes", "rejected": "no"}, "chosen"),
    "mixed": ({"prompt": "hi", "chosen": "yes", "rejected": [REJECTED]}, "rejected"),
    "unknown role": ({"prompt": "hi", "chosen": [{"role": "robot", "content": "x"}], "rejected": [REJECTED]}, "chosen"),
    "no assistant at the end": ({"prompt": "hi", "chosen": [USER], "rejected": [REJECTED]}, "chosen"),
    "number": ({"prompt": "hi", "chosen": 3, "rejected": "no"}, "chosen"),
    "half a message": ({"prompt": [{"role": "user"}], "chosen": "yes", "rejected": "no"}, "prompt"),
    "lone surrogate": ({"prompt": "hi", "chosen": "\ud800", "rejected": "no"}, "chosen"),
    "lone surrogate in the prompt": ({"prompt": "\ud800", "chosen": "yes", "rejected": "no"}, "prompt"),
    **{
        f"{key} {value!r}": ({"prompt": "hi", "chosen": "yes", "rejected": "no", key: value}, key)
        for key in ("group", "source")
        for value in (["a"], {"a": 1}, 1.5, float("nan"), True, "")
    },
    "margin of text": ({"prompt": "hi", "chosen": "yes", "rejected": "no", "margin": "2"}, "margin"),
    "margin NaN": ({"prompt": "hi", "chosen": "yes", "rejected": "no", "margin": float("nan")}, "margin"),
}


@pytest.mark.parametrize(("values", "field"), BAD.values(), ids=BAD)
def test_a_row_that_makes_no_pair_names_its_field(values, field):
    with pytest.raises(FieldError) as caught:
        pair(values)
    assert caught.value.field == field


def test_bad_rows_are_listed_with_file_line_and_field(tmp_path):
    rows = [*planted_rows(3), *({"prompt": "p", "rejected": "x"} for _ in range(30))]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    with path.open("a") as out:
        out.write("{no json\n[1]\n")
    with pytest.raises(DataError) as caught:
        data.load(DataConfig((SourceConfig(str(path)),)), "score")
    message = str(caught.value)
    assert "32 of 35 rows" in message
    assert f"{path}:4: chosen: is missing" in message
    assert message.count("\n  ") == 3, "one line a cause"
    assert f"{path}:4: chosen: is missing" in message
    assert "(and 29 more rows: " in message


def test_the_values_of_a_fault_make_no_other_cause(tmp_path):
    rows = [{"prompt": "p", "response": f"r{i}", "rating": ["good", "it's", "7,5"][i % 3] + f"{i}"} for i in range(160)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError) as caught:
        data.load(DataConfig((SourceConfig(str(path)),)), "score")
    assert str(caught.value).count("\n  ") == 1
    assert f"{path}:1: rating: is 'good0'; a rating is a number" in str(caught.value)
    assert "(and 159 more rows: " in str(caught.value)


def test_a_source_that_loses_too_much_says_why(tmp_path):
    path = write_jsonl(
        tmp_path / "d.jsonl", [planted_rows(1)[0], *({"prompt": "p", "rejected": "x"} for _ in range(9))]
    )
    with pytest.raises(DataError) as caught:
        data.load(DataConfig((SourceConfig(str(path)),), on_bad_row="skip"), "score")
    assert f"\n  {path}:2: chosen: is missing" in str(caught.value)
    assert "(and 8 more rows: " in str(caught.value)


@pytest.mark.parametrize("place", ["sources", "eval_sources"])
def test_errors_name_the_place_of_a_source_in_the_recipe(tmp_path, place):
    good = SourceConfig(str(write_jsonl(tmp_path / "d.jsonl", planted_rows(4))))
    wrong = replace(good, chosen_key="choosen")
    listed = {"sources": (good,), "eval_sources": (good,), place: (good, wrong)}
    with pytest.raises(ConfigError, match=rf"^data\.{place}\.1: data source '.*': chosen_key is 'choosen'"):
        data.load(DataConfig(**listed), "score")


def test_a_negative_margin_is_a_bad_row(tmp_path):
    path = write_jsonl(
        tmp_path / "d.jsonl", [{**row, "margin": m} for row, m in zip(planted_rows(3), (0, 1.5, -1), strict=True)]
    )
    with pytest.raises(
        DataError, match=r"1 of 3 rows makes no pair .*\n  \S+:3: margin: is '-1'; a margin is a number from 0 to"
    ):
        data.load(DataConfig((SourceConfig(str(path)),)), "score")


def test_bad_rows_are_skipped_and_counted_where_the_recipe_says_so(tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [*planted_rows(40), {"prompt": "p"}])
    split = data.load(DataConfig((SourceConfig(str(path)),), on_bad_row="skip"), "score")
    assert (len(split.train) + len(split.held_out), split.n_rows) == (40, 41)
    assert [(b.line, b.field) for b in split.bad] == [(41, "chosen")]


def test_jsonl_gzip_parquet_a_folder_and_a_saved_data_set_hold_the_same_pairs(tmp_path):
    import datasets

    rows = planted_rows(12)
    plain = write_jsonl(tmp_path / "a" / "d.jsonl", rows)
    packed = write_jsonl(tmp_path / "d.jsonl.gz", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    folder = write_jsonl(tmp_path / "folder" / "train.jsonl", rows).parent
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    found = [
        data.digest(data.read_source(SourceConfig(str(path)), head="score", cache=str(tmp_path / "cache")).pairs)
        for path in (plain, packed, tmp_path / "d.parquet", folder, tmp_path / "saved")
    ]
    assert len(set(found)) == 1


@pytest.mark.parametrize("path", ["gone.jsonl", "gone.parquet", "./gone"])
def test_a_source_that_is_not_there_is_named(path, tmp_path):
    with pytest.raises(ConfigError, match="gone"):
        data.load(DataConfig((SourceConfig(path),), cache=str(tmp_path)), "score")


@given(group=st.text(max_size=20), salt=st.text(max_size=5), fraction=st.floats(0, 0.99))
def test_the_split_rule_is_the_one_that_is_stated(group, salt, fraction):
    number = int(hashlib.sha256(f"{salt}:{group}".encode()).hexdigest(), 16) % 10_000
    assert is_held_out(group, salt, fraction) == (number < round(10_000 * fraction))


@given(groups=st.lists(st.text(max_size=6), min_size=1, max_size=40), low=st.floats(0, 0.5), more=st.floats(0, 0.4))
def test_a_group_once_held_out_stays_so_when_more_are_held_out(groups, low, more):
    for group in groups:
        assert is_held_out(group, "s", low + more) or not is_held_out(group, "s", low)


@given(groups=st.lists(st.integers(0, 8), min_size=2, max_size=60), fraction=st.floats(0, 0.9))
def test_no_group_is_on_both_sides_and_no_pair_is_lost(groups, fraction):
    pairs = [pair({"prompt": "hi", "chosen": f"yes {i}", "rejected": "no", "group": g}) for i, g in enumerate(groups)]
    train, held = data._by_group(pairs, DataConfig((SourceConfig("f"),), eval_fraction=fraction))
    assert not {p.group for p in train} & {p.group for p in held}
    assert len(train) + len(held) == len(pairs)


def test_held_out_share_is_near_the_fraction():
    n = sum(is_held_out(str(i), "salt", 0.1) for i in range(20_000))
    assert 1_850 < n < 2_150


def test_eval_sources_take_their_groups_away_from_training(tmp_path):
    rows = planted_rows(40, n_groups=10)
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    held = write_jsonl(tmp_path / "eval.jsonl", [r for r in rows if r["group"] in ("g1", "g2")])
    split = data.load(DataConfig((SourceConfig(str(train)),), eval_sources=(SourceConfig(str(held)),)), "score")
    assert (len(split.train), len(split.held_out)) == (32, 8)
    assert not {p.group for p in split.train} & {"g1", "g2"}


def test_max_pairs_keeps_the_same_pairs_every_time(tmp_path):
    path = str(write_jsonl(tmp_path / "d.jsonl", planted_rows(50)))
    few = data.read_source(SourceConfig(path, max_pairs=10), head="score", salt="a")
    again = data.read_source(SourceConfig(path, max_pairs=10), head="score", salt="a")
    other = data.read_source(SourceConfig(path, max_pairs=10), head="score", salt="b")
    assert len(few.pairs) == 10
    assert few.pairs == again.pairs
    assert few.pairs != other.pairs


def test_the_digest_says_when_anything_changed():
    rows = planted_rows(4)
    pairs = [pair(r) for r in rows]
    changed = [pair({**rows[0], "margin": 1.0}), *pairs[1:]]
    assert data.digest(pairs) == data.digest([pair(json.loads(json.dumps(r))) for r in rows])
    assert len({data.digest(pairs), data.digest(changed), data.digest(pairs[::-1]), data.digest(pairs[:3])}) == 4


@pytest.mark.parametrize("group", ["a", 7, 7.0, "7"])
def test_a_group_is_a_text_or_a_whole_number(group):
    found = pair({"prompt": "hi", "chosen": "yes", "rejected": "no", "group": group})
    assert found.group == ("a" if group == "a" else "7")


@pytest.mark.parametrize("n_groups", [1, 3])
def test_a_share_that_holds_nothing_out_is_refused_with_the_numbers(tmp_path, n_groups):
    rows = [{**row, "group": f"g{i % n_groups}"} for i, row in enumerate(planted_rows(12))]
    source = SourceConfig(str(write_jsonl(tmp_path / "d.jsonl", rows)))
    with pytest.raises(DataError) as refused:
        data.load(DataConfig((source,), eval_fraction=1e-4), "score")
    assert (
        f"data.eval_fraction is 0.0001, and of {n_groups} group{'s' * (n_groups > 1)} (12 pairs) none is held out"
        in str(refused.value)
    )
    assert len(data.load(DataConfig((source,), eval_fraction=0), "score").train) == 12


def test_one_file_as_several_sources_has_items_with_ids_of_their_own(tmp_path):
    """Else what one source loses is not missed where the other has it."""
    path = str(write_jsonl(tmp_path / "d.jsonl", planted_rows(40)))
    sources_ = tuple(SourceConfig(path, head=head) for head in ("a", "b"))
    split = data.load(DataConfig(sources_, eval_fraction=0.25), "a")
    items = (*split.train, *split.held_out)
    assert len({item.id for item in items}) == len(items) == 80
    assert {item.id for item in split.read[0].items} == {f"{path}:{i}" for i in range(1, 41)}
    assert {item.id for item in split.read[1].items} == {f"{path}:{i} (source 2)" for i in range(1, 41)}


def test_a_source_beyond_max_pairs_takes_no_more_memory(tmp_path):
    """Rows are read again from the file instead of kept: ten times the rows, the same peak."""

    def peak(n):
        path = tmp_path / f"{n}.jsonl"
        with path.open("w") as file:
            for i in range(n):
                row = {"prompt": f"question {i} " + "p" * 2000, "chosen": f"good {i}", "rejected": f"bad {i}"}
                file.write(json.dumps(row) + "\n")
        tracemalloc.start()
        found = data.read_source(SourceConfig(str(path), max_pairs=50), head="score")
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (len(found.items), found.n_rows, found.n_spare) == (50, n, n - 50)
        return top

    peak(100)  # what is loaded on the way
    assert peak(3000) < 1.2 * peak(300) + 100_000
