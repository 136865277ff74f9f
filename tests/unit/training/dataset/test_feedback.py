"""Rankings, ratings, labels and ties: what a row becomes, which pairs are in it, and which rows are refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from rewardserve.model.conversation import Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from rewardserve.training.dataset import data, pairs, sequences, source_columns, sources
from rewardserve.training.dataset.comparisons import MOST_PARTNERS, comparisons
from rewardserve.training.dataset.conversations import FieldError
from rewardserve.training.dataset.feedback import Graded, counted, kinds_of, noun
from rewardserve.training.dataset.rating_scale import standardised
from rewardserve.training.dataset.sequences import FeedbackTable, TokenSequence
from rewardserve.training.settings.data_config import DataConfig, SourceConfig
from rewardserve.training.settings.validation import ConfigError
from tests.support.planted_pairs import planted_rows, tokenizer, write_jsonl

USER = {"role": "user", "content": "hi"}
YES, NO = {"role": "assistant", "content": "yes"}, {"role": "assistant", "content": "no"}
PROMPT = (Message("user", "hi"),)


def item(values, **source):
    row = sources.SourceRow("f", 1, values)
    return pairs.to_item(row, source_columns.find_columns([row], SourceConfig("f", **source)), "score")


ROWS = {
    "rating": ({"prompt": "hi", "response": "yes", "rating": 4}, "ratings", (4.0,)),
    "rating as score of a completion": ({"prompt": [USER], "completion": "yes", "score": 0.5}, "ratings", (0.5,)),
    "label of TRL": ({"prompt": "hi", "completion": "yes", "label": True}, "labels", (1.0,)),
    "label of TRL, messages": ({"prompt": [USER], "completion": [YES], "label": False}, "labels", (0.0,)),
    "label of LLaMA-Factory": ({"prompt": "hi", "output": "yes", "kto_tag": False}, "labels", (0.0,)),
    "label of a whole conversation": ({"messages": [USER, YES], "label": 1}, "labels", (1.0,)),
    "label of a table": ({"prompt": "hi", "response": "yes", "label": "false"}, "labels", (0.0,)),
    "ranking": ({"prompt": "hi", "responses": ["yes", "no", "so"], "ranks": [2, 1, 2]}, "rankings", (-2, -1, -2)),
    "ranking of messages": ({"prompt": [USER], "responses": [[YES], [NO]], "ranks": [1, 2]}, "rankings", (-1, -2)),
    "pair": ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, "pairs", (1.0, 0.0)),
    "tie": ({"prompt": "hi", "chosen": "yes", "rejected": "no", "tie": True}, "pairs", (0.0, 0.0)),
}  # fmt: skip


@pytest.mark.parametrize(("values", "kind", "graded"), ROWS.values(), ids=ROWS)
def test_the_kind_of_a_row_is_that_of_its_columns(values, kind, graded):
    got = item(values)
    assert (got.kind, got.values) == (kind, graded)
    assert got.samples[0].conversation() == (*PROMPT, Message("assistant", "yes"))
    assert got.texts[0] == "yes"
    assert got.group == item(ROWS["pair"][0]).group, "the prompt is the group, in every kind"


def test_lower_is_better_where_the_recipe_says_so():
    rating = {"prompt": "hi", "response": "yes", "rating": 4}
    assert item(rating, better="lower").values == (-4.0,)
    ranking = {"prompt": "hi", "responses": ["yes", "no"], "ranks": [0.1, 0.9]}
    assert item(ranking, better="higher").values == (0.1, 0.9)


def test_a_confidence_and_a_flip_rate_say_the_same():
    row = {"prompt": "hi", "chosen": "yes", "rejected": "no", "sure": 0.75, "wrong": 0.25}
    assert item(row).flip == 0.0
    assert item(row, confidence_key="sure").flip == item(row, flip_key="wrong").flip == 0.25
    with pytest.raises(ConfigError, match="flip_key"):
        item(row, confidence_key="sure", flip_key="wrong")


BAD = {
    "rating of text": ({"prompt": "hi", "response": "yes", "rating": "good"}, {}, "rating"),
    "rating NaN": ({"prompt": "hi", "response": "yes", "rating": float("nan")}, {}, "rating"),
    "rating of true": ({"prompt": "hi", "response": "yes", "rating": True}, {}, "rating"),
    "label of two": ({"prompt": "hi", "response": "yes", "label": 2}, {}, "label"),
    "label of a list": ({"prompt": "hi", "response": "yes", "label": [1]}, {}, "label"),
    "too few ranks": ({"prompt": "hi", "responses": ["a", "b"], "ranks": [1]}, {}, "ranks"),
    "a rank of null": ({"prompt": "hi", "responses": ["a", "b"], "ranks": [1, None]}, {}, "ranks"),
    "one response": ({"prompt": "hi", "responses": ["a"], "ranks": [1]}, {}, "responses"),
    "the same response twice": ({"prompt": "hi", "responses": ["a", "a"], "ranks": [1, 2]}, {}, "responses"),
    "a response of white space": ({"prompt": "hi", "responses": ["a", " "], "ranks": [1, 2]}, {}, "responses"),
    "mixed responses": ({"prompt": "hi", "responses": ["a", [NO]], "ranks": [1, 2]}, {}, "responses"),
    "an empty response": ({"prompt": "hi", "response": "", "rating": 1}, {}, "response"),
    "tie of text": ({"prompt": "hi", "chosen": "yes", "rejected": "no", "tie": "perhaps"}, {}, "tie"),
    "tie with a margin": ({"prompt": "hi", "chosen": "yes", "rejected": "no", "tie": True, "margin": 1}, {}, "margin"),
    "confidence below a half": ({"prompt": "hi", "chosen": "yes", "rejected": "no", "c": 0.3},
                                {"confidence_key": "c"}, "c"),
    "flip rate above a half": ({"prompt": "hi", "response": "yes", "label": True, "c": 0.7}, {"flip_key": "c"}, "c"),
    "a text that is the whole conversation": ({"messages": "User: hi", "label": True}, {"prompt_key": None}, "messages"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "source", "field"), BAD.values(), ids=BAD)
def test_a_row_that_makes_no_item_names_its_field(values, source, field):
    with pytest.raises(FieldError) as caught:
        item(values, **source)
    assert caught.value.field == field


def test_columns_of_two_kinds_need_a_word_of_the_recipe():
    row = {"prompt": "hi", "response": "yes", "rating": 4, "label": True}
    with pytest.raises(ConfigError, match="ratings and of labels: set kind"):
        item(row)
    assert item(row, kind="labels").values == (1.0,)
    with pytest.raises(ConfigError, match="margin_key is 'gap', which has no effect with labels"):
        item(row, kind="labels", margin_key="gap")


def test_bad_rows_are_named_by_their_kind_with_file_and_line(tmp_path):
    rows = [{"prompt": f"p{i}", "response": "a", "rating": 1} for i in range(3)] + [{"prompt": "p", "response": "a"}]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    with pytest.raises(data.DataError, match=rf"1 of 4 rows makes no rating .*\n  {path}:4: rating: is missing"):
        data.load(DataConfig((SourceConfig(str(path)),)), "score")


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet", ".jsonl.gz"])
def test_every_format_holds_the_same_ratings(suffix, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": f"p{i}", "response": f"a{i}", "rating": i / 2} for i in range(5)]
    path = tmp_path / f"r{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        lines = ["prompt,response,rating", *(f"{r['prompt']},{r['response']},{r['rating']}" for r in rows)]
        path.write_text("\n".join(lines))
    elif suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    plain = write_jsonl(tmp_path / "plain.jsonl", rows)
    digests = [data.digest(data.read_source(SourceConfig(str(p)), head="score").items) for p in (path, plain)]
    assert digests[0] == digests[1]


def test_the_digest_of_pairs_is_that_of_before_and_says_what_else_is_known():
    pair = item(ROWS["pair"][0])
    tie, unsure = replace(pair, tie=True), replace(pair, flip=0.1)
    assert len({data.digest([each]) for each in (pair, tie, unsure)}) == 3
    one, two = (replace(item(ROWS["rating"][0]), values=(v,)) for v in (1.0, 2.0))
    assert data.digest([one]) != data.digest([two])


def test_items_are_counted_in_words():
    items = [item(ROWS[name][0]) for name in ("pair", "rating", "rating", "ranking")]
    assert counted(items) == "1 pair and 1 ranking and 2 ratings"
    assert kinds_of(items) == ("pairs", "rankings", "ratings")
    assert [noun(("ratings",)), noun(()), noun(("pairs", "labels"))] == ["rating", "pair", "item"]


# -- the pairs in it --------------------------------------------------------------------------------------


def graded(number, kind, values, prompt="p", **fields):
    samples = tuple(Sample(prompt=prompt, response=f"{number}.{k}") for k in range(len(values)))
    made = Graded(f"f:{number}", "s", prompt, "score", kind, samples, tuple(s.response for s in samples), values)
    return replace(made, **fields)


def table_of(*items):
    n = sum(len(each.samples) for each in items)
    numbers, rows = iter(range(n)), []
    for each in items:
        rows.append(tuple(next(numbers) for _ in each.samples))
    every = tuple(TokenSequence((i,), 1, s) for i, s in enumerate(s for each in items for s in each.samples))
    return FeedbackTable(items, every, tuple(rows), {})


def test_a_ranking_holds_a_pair_for_every_two_of_its_ranks():
    table = comparisons(table_of(graded(1, "rankings", (-2.0, -1.0, -2.0, -3.0))))
    assert set(table.rows) == {(1, 0), (1, 2), (0, 3), (2, 3), (1, 3)}
    assert {p.id for p in table.pairs} >= {"f:1#2>f:1#1"}
    assert all(p.chosen_text == f"1.{c}" for p, (c, _) in zip(table.pairs, table.rows, strict=True))


def test_ratings_are_compared_within_their_prompt():
    rows = [
        graded(i, "ratings", (float(v),), prompt=p) for i, (p, v) in enumerate([("a", 1), ("a", 2), ("b", 3), ("b", 3)])
    ]
    assert comparisons(table_of(*rows)).rows == ((1, 0),)


def test_labels_of_prompts_with_one_response_each_are_compared_across_them():
    rows = [graded(i, "labels", (float(i > 1),), prompt=f"p{i}") for i in range(4)]
    assert set(comparisons(table_of(*rows)).rows) == {(2, 0), (2, 1), (3, 0), (3, 1)}


def test_other_sources_and_heads_are_not_compared():
    rows = [
        graded(0, "ratings", (1.0,)),
        graded(1, "ratings", (2.0,), source="t"),
        graded(2, "ratings", (3.0,), head="h"),
    ]
    assert comparisons(table_of(*rows)).rows == ()


def test_the_pairs_of_a_large_prompt_grow_with_its_responses_alone():
    rows = [graded(i, "ratings", (float(i),)) for i in range(400)]
    found = comparisons(table_of(*rows)).rows
    assert len(found) <= 400 * MOST_PARTNERS // 2
    assert all(better > worse for better, worse in found)
    beside = np.bincount(np.array(found).ravel(), minlength=400)
    assert beside.min() >= MOST_PARTNERS - 1


def test_decided_pairs_are_their_own_and_ties_are_left_out():
    read = [sources.SourceRow("f", i, row) for i, row in enumerate(planted_rows(4), 1)]
    made = [pairs.to_item(r, source_columns.find_columns(read, SourceConfig("f")), "score") for r in read]
    table = table_of(*made)
    assert comparisons(table) is table
    tied = replace(table, items=(replace(made[0], tie=True), *made[1:]))
    assert comparisons(tied).items == tuple(made[1:])
    mixed = table_of(*tied.items, graded(9, "rankings", (1.0, 2.0)))
    assert comparisons(mixed).items[:3] == tuple(made[1:])


# -- scale of ratings -------------------------------------------------------------------------------------


def test_ratings_are_standardised_over_their_source():
    values = (1.0, 2.0, 4.0, 9.0)
    table, (scale,) = standardised(table_of(*(graded(i, "ratings", (v,)) for i, v in enumerate(values))))
    expected = (np.array(values) - np.mean(values)) / np.std(values)
    assert np.allclose([each.values[0] for each in table.items], expected)
    assert (scale.mean, scale.std, scale.n) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values)), 4)
    assert str(scale) == "4 ratings of s for score: less 4, divided by 3.082"


def test_ratings_that_compare_within_a_prompt_lose_its_mean_first():
    rows = [("a", 101.0), ("a", 103.0), ("b", 1.0), ("b", 5.0), ("b", 6.0)]
    table, (scale,) = standardised(
        table_of(*(graded(i, "ratings", (v,), prompt=p, scale="prompt") for i, (p, v) in enumerate(rows)))
    )
    less = np.array([-1, 1, -3, 1, 2.0])
    assert np.allclose([each.values[0] for each in table.items], less / less.std())
    assert "less the mean of their prompt" in str(scale)


def test_a_table_without_ratings_stays_and_ratings_that_do_not_differ_are_refused():
    table = table_of(graded(1, "rankings", (1.0, 2.0)))
    assert standardised(table) == (table, ())
    with pytest.raises(ConfigError, match="2 training ratings of s for head 'score' do not differ"):
        standardised(table_of(graded(0, "ratings", (1.0,)), graded(1, "ratings", (1.0,))))


def test_a_ranking_with_equal_sequences_is_dropped():
    class SameIds:
        def __call__(self, sample):
            from rewardserve.model.encoding import Encoded

            return Encoded((1, 2), 1)

    table = sequences.encode([graded(1, "rankings", (1.0, 2.0, 3.0))], SameIds())
    assert (len(table), table.dropped) == (0, {"same_tokens": 1})


# -- attributes: one row for several heads ----------------------------------------------------------------


def items_of(*rows, **source):
    read = [sources.SourceRow("f", i, row) for i, row in enumerate(rows, 1)]
    found = source_columns.find_columns(read, SourceConfig("f", **source))
    return [each for row in read for each in pairs.to_items(row, found, "score")]


ATTRIBUTES = ("helpful", "honest")


def test_each_attribute_with_a_value_is_a_rating_for_its_head():
    rows = [
        {"prompt": "hi", "response": "yes", "helpful": 4, "honest": 1.5},
        {"prompt": "hi", "response": "no", "helpful": None, "honest": 2},
    ]
    got = items_of(*rows, attributes=ATTRIBUTES)
    assert [(i.id, i.kind, i.head, i.values) for i in got] == [
        ("f:1#helpful", "ratings", "helpful", (4.0,)),
        ("f:1#honest", "ratings", "honest", (1.5,)),
        ("f:2#honest", "ratings", "honest", (2.0,)),
    ]
    assert [i.values for i in items_of(*rows, attributes=ATTRIBUTES, better="lower")] == [(-4.0,), (-1.5,), (-2.0,)]


def test_the_sign_of_an_attribute_of_a_pair_is_its_preference():
    row = {"prompt": "hi", "chosen": "yes", "rejected": "no", "helpful": 2, "honest": -1, "margin": 3}
    helpful, honest = items_of(row, attributes=ATTRIBUTES)
    assert (helpful.chosen_text, honest.chosen_text, helpful.margin) == ("yes", "no", 0.0)
    assert honest.chosen.conversation()[-1].content == "no"
    (tie,) = items_of({**row, "helpful": 0}, attributes=("helpful",))
    assert tie.tie
    assert tie.values == (0.0, 0.0)


def test_a_row_without_any_attribute_and_a_bad_one_are_named():
    rows = [{"prompt": "hi", "response": "yes", "helpful": 4, "honest": 1}, {"prompt": "hi", "response": "no"}]
    with pytest.raises(FieldError, match="is missing, and so are the other attributes"):
        items_of(*rows, attributes=ATTRIBUTES)
    with pytest.raises(FieldError, match="a rating is a number"):
        items_of({**rows[0], "honest": "very"}, attributes=ATTRIBUTES)
    with pytest.raises(ConfigError, match="attributes has 'kind', and no row has a value of it"):
        items_of(*rows, attributes=("kind",))
    with pytest.raises(ConfigError, match="attributes are those of pairs or ratings, and kind is labels"):
        items_of(*rows, attributes=("helpful",), kind="labels")
    with pytest.raises(ConfigError, match="left out with attributes"):
        SourceConfig("f", head="a", attributes=("helpful",))


# -- labels of steps --------------------------------------------------------------------------------------

STEPS = {"prompt": "2+3+4?", "completions": ["2+3=5", "5+4=8", "So 8."], "labels": [True, False, False]}


def test_each_step_is_a_label_of_the_response_up_to_its_end():
    """The format of TRL's PRMTrainer."""
    got = items_of(STEPS)
    assert [i.texts for i in got] == [("2+3=5",), ("2+3=5\n5+4=8",), ("2+3=5\n5+4=8\nSo 8.",)]
    assert [i.values for i in got] == [(1.0,), (0.0,), (0.0,)]
    assert [i.kind for i in got] == ["labels"] * 3
    assert [i.samples[0].finish_reason for i in got] == ["length", "length", "stop"]
    assert [i.id for i in got] == ["f:1#1", "f:1#2", "f:1#3"]
    assert len({i.group for i in got}) == 1
    joined = items_of(STEPS, step_separator=" | ")[1]
    assert joined.samples[0].conversation()[-1].content == "2+3=5 | 5+4=8"


def test_a_step_is_read_at_its_last_token_in_the_tokens_of_the_whole_response():
    tok = tokenizer()
    encode = Encoder(tok, infer_policy(tok, max_tokens=99, vocab_size=len(tok), rule=LAYOUT_RULES["language_model"]))
    ids = [encode(i.samples[0]).ids for i in items_of(STEPS)]
    whole, end = ids[-1], encode.policy.end_ids
    assert whole[-len(end) :] == end
    for number, until in enumerate(ids[:-1]):
        assert until == whole[: len(until)], (
            "the same tokens as in the whole response, so the same score in a causal model"
        )
        assert tok.decode(until).endswith(STEPS["completions"][number])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"completions": "2+3=5"}, "completions"),
        ({"completions": []}, "completions"),
        ({"completions": ["a", " ", "b"]}, "completions"),
        ({"completions": ["a", 3, "b"]}, "completions"),
        ({"labels": [True]}, "labels"),
        ({"labels": [True, True, 2]}, "labels"),
        ({"labels": [None, None, None]}, "labels"),
    ],
)
def test_bad_steps_are_named(change, field):
    with pytest.raises(FieldError) as caught:
        items_of({**STEPS, **change})
    assert caught.value.field == field
