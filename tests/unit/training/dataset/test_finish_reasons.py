"""A response that was cut off is trained as it is served: by its finish reason, in every kind of feedback and form of a row."""

from __future__ import annotations

import pytest

from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from rewardserve.service.api.requests import SampleIn, to_sample
from rewardserve.service.api.validation import check
from rewardserve.training.dataset import data, leakage, row_counts, sequences
from rewardserve.training.dataset.conversations import FieldError
from rewardserve.training.dataset.data import Split
from rewardserve.training.settings.data_config import SourceConfig
from tests.support.planted_pairs import tokenizer, write_jsonl
from tests.unit.training.dataset.test_feedback import item, items_of

Q = "say 7"
ASKED = [{"role": "user", "content": Q}]
WHOLE = {text: [*ASKED, {"role": "assistant", "content": text}] for text in ("yes", "no", "so")}


@pytest.fixture(scope="module")
def encoder():
    tok = tokenizer()
    return Encoder(tok, infer_policy(tok, max_tokens=99, vocab_size=len(tok), rule=LAYOUT_RULES["language_model"]))


def served(encoder, text, reason):
    """Ids of the sample of a request of `POST /score`."""
    sent = {"prompt": Q, "response": text, **({"finish_reason": reason} if reason else {})}
    return encoder(to_sample(check(sent, SampleIn, ""))).ids


PAIR = {"prompt": Q, "chosen": "yes", "rejected": "no"}
STEPS = {"prompt": Q, "completions": ["yes", "no"], "labels": [True, False]}
ROWS = {
    "pair, chosen": (PAIR | {"chosen_finish_reason": "length"}, {}, ["length", None]),
    "pair, rejected": (PAIR | {"chosen_finish_reason": "stop", "rejected_finish_reason": "length"}, {},
                       ["stop", "length"]),
    "pair of messages": ({"chosen": WHOLE["yes"], "rejected": WHOLE["no"], "chosen_finish_reason": "length"}, {},
                         ["length", None]),
    "pair under other names": ({"prompt": Q, "good": "yes", "bad": "no", "rejected_finish_reason": "length"},
                               {"chosen_key": "good", "rejected_key": "bad"}, [None, "length"]),
    "pair by attributes": (PAIR | {"kind": -1, "chosen_finish_reason": "length"}, {"attributes": ("kind",)},
                           [None, "length"]),
    "ranking": ({"prompt": Q, "responses": ["yes", "no", "so"], "ranks": [1, 2, 3],
                 "finish_reasons": ["stop", "length", None]}, {}, ["stop", "length", None]),
    "rating": ({"prompt": Q, "response": "yes", "rating": 1, "finish_reason": "length"}, {}, ["length"]),
    "rating by attributes": ({"prompt": Q, "response": "yes", "kind": 1, "finish_reason": "length"},
                             {"attributes": ("kind",)}, ["length"]),
    "label": ({"prompt": ASKED, "completion": "yes", "label": True, "finish_reason": "length"}, {}, ["length"]),
    "ignored": ({"prompt": Q, "response": "yes", "label": True, "finish_reason": "eos"},
                {"ignored_columns": ("finish_reason",)}, [None]),
    "empty": (PAIR | {"chosen_finish_reason": None, "rejected_finish_reason": ""}, {}, [None, None]),
}  # fmt: skip


@pytest.mark.parametrize(("values", "source", "reasons"), ROWS.values(), ids=ROWS)
def test_the_ids_are_those_of_the_served_sample(encoder, values, source, reasons):
    found = items_of(values, **source)
    table = sequences.encode(found, encoder)
    assert not table.dropped
    for one, rows in zip(table.items, table.rows, strict=True):
        for text, row, reason in zip(one.texts, rows, reasons, strict=True):
            assert table.sequences[row].ids == served(encoder, text, reason)
    assert served(encoder, "yes", "length") != served(encoder, "yes", "stop")


@pytest.mark.parametrize("last", ["length", "stop"])
def test_the_last_step_ends_as_its_row_says(encoder, last):
    ids = [encoder(each.samples[0]).ids for each in items_of(STEPS | {"finish_reason": last})]
    assert ids == [served(encoder, "yes", "length"), served(encoder, "yes\nno", last)]


@pytest.mark.parametrize(
    ("values", "field"),
    [
        (PAIR | {"chosen_finish_reason": "eos"}, "chosen_finish_reason"),
        (PAIR | {"rejected_finish_reason": 1}, "rejected_finish_reason"),
        ({"prompt": Q, "responses": ["yes", "no"], "ranks": [1, 2], "finish_reasons": ["stop"]}, "finish_reasons"),
        ({"prompt": Q, "responses": ["yes", "no"], "ranks": [1, 2], "finish_reasons": "length"}, "finish_reasons"),
        (
            {"prompt": Q, "responses": ["yes", "no"], "ranks": [1, 2], "finish_reasons": ["stop", "eos"]},
            "finish_reasons",
        ),
        ({"prompt": Q, "response": "yes", "rating": 1, "finish_reason": "content_filter"}, "finish_reason"),
        (STEPS | {"finish_reason": "found_error"}, "finish_reason"),
    ],
)
def test_another_finish_reason_makes_a_bad_row(values, field):
    with pytest.raises(FieldError) as caught:
        item(values) if "completions" not in values else items_of(values)
    assert caught.value.field == field


def test_a_response_with_and_without_its_end_are_two_sequences_and_a_leak(encoder, tmp_path):
    """Two in the features and counts, and one text where it is held out."""
    path = write_jsonl(tmp_path / "rows.jsonl", [PAIR, PAIR | {"chosen_finish_reason": "length"}])
    read = data.read_source(SourceConfig(str(path)), head="score")
    whole, cut = (sequences.encode([pair], encoder) for pair in read.pairs)
    both = sequences.joined(whole, cut)
    assert (len(both.sequences), len(set(both.rows))) == (3, 2)
    assert leakage.remove_overlap(cut, whole)[1].n_dropped == 1
    counts = row_counts.count_rows(Split(read.pairs, (), (read,)), both, sequences.EMPTY, leakage.Overlap())
    assert (counts.n_duplicate, counts.n_cut) == (0, 1)
    assert "  1 have a response that was cut off (finish_reason: length), read without an end token" in list(
        row_counts.lines(counts)
    )
    assert data.digest(read.pairs[:1]) != data.digest(read.pairs[1:])
