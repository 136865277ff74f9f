"""Rows of public data sets, as their cards and repositories document them, become the items that they mean."""

from __future__ import annotations

import json

import pytest

from rewardserve.model.conversation import Message
from rewardserve.training.dataset import data
from rewardserve.training.settings.data_config import SourceConfig
from tests.support.planted_pairs import write_jsonl


def read(tmp_path, *rows, **source):
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    return data.read_source(SourceConfig(str(path), **source), head="score")


def one(tmp_path, row, **source):
    found = read(tmp_path, row, **source)
    assert not found.bad, found.bad
    (item,) = found.items
    return item


def turns(sample):
    return [(m.role, m.content) for m in sample.conversation()]


HUMAN = {"from": "human", "value": "Name a metal."}
GOOD, BAD = {"from": "gpt", "value": "Iron."}, {"from": "gpt", "value": "Wood."}
ASKED = [("user", "Name a metal.")]

UNDER_COMMON_NAMES = {
    # LLaMA-Factory, data/README.md
    "sharegpt preference": {"conversations": [HUMAN], "chosen": GOOD, "rejected": BAD},
    "sharegpt, openai names": {
        "messages": [{"role": "user", "content": "Name a metal."}],
        "chosen": {"role": "assistant", "content": "Iron."},
        "rejected": {"role": "assistant", "content": "Wood."},
    },
    "sharegpt, lists of messages": {"chosen": [HUMAN, GOOD], "rejected": [HUMAN, BAD]},
    "sharegpt, texts": {"conversations": [HUMAN], "chosen": "Iron.", "rejected": "Wood."},
    "alpaca preference": {"instruction": "Name a metal.", "input": "", "chosen": "Iron.", "rejected": "Wood."},
    "alpaca, list of outputs": {"instruction": "Name a metal.", "input": "", "output": ["Iron.", "Wood."]},
    # Anthropic/hh-rlhf
    "hh": {
        "chosen": "\n\nHuman: Name a metal.\n\nAssistant: Iron.",
        "rejected": "\n\nHuman: Name a metal.\n\nAssistant: Wood.",
    },
    # HuggingFaceH4/ultrafeedback_binarized
    "ultrafeedback_binarized": {
        "prompt": "Name a metal.",
        "prompt_id": "8e5c5a",
        "chosen": [{"content": "Name a metal.", "role": "user"}, {"content": "Iron.", "role": "assistant"}],
        "rejected": [{"content": "Name a metal.", "role": "user"}, {"content": "Wood.", "role": "assistant"}],
        "messages": [{"content": "Name a metal.", "role": "user"}, {"content": "Iron.", "role": "assistant"}],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    },
    # nvidia/HelpSteer2, preference
    "helpsteer2 preference": {
        "split": "train",
        "prompt": "Name a metal.",
        "response_1": "Wood.",
        "response_2": "Iron.",
        "preference_strength": 2,
        "preference_statement": "Response 2 is right.",
    },
    # nvidia/HelpSteer3, preference
    "helpsteer3": {
        "domain": "general",
        "language": "english",
        "context": [{"role": "user", "content": "Name a metal."}],
        "response1": "Iron.",
        "response2": "Wood.",
        "overall_preference": -3,
        "individual_preference": [{"score": -3, "reasoning": "r", "feedback1": "f", "feedback2": "f"}],
    },
    # lmsys/chatbot_arena_conversations
    "arena": {
        "question_id": "58210e",
        "model_a": "x",
        "model_b": "y",
        "winner": "model_b",
        "conversation_a": [
            {"content": "Name a metal.", "role": "user"},
            {"content": "Wood.", "role": "assistant"},
        ],
        "conversation_b": [
            {"content": "Name a metal.", "role": "user"},
            {"content": "Iron.", "role": "assistant"},
        ],
        "turn": 1,
    },
    # PKU-Alignment/PKU-SafeRLHF
    "saferlhf": {
        "prompt": "Name a metal.",
        "response_0": "Wood.",
        "response_1": "Iron.",
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "better_response_id": 1,
        "safer_response_id": 0,
    },
    # stanfordnlp/SHP
    "shp": {
        "post_id": "qt3nxl",
        "history": "Name a metal.",
        "human_ref_A": "Wood.",
        "human_ref_B": "Iron.",
        "labels": 0,
        "score_A": 2,
        "score_B": 9,
    },
}


@pytest.mark.parametrize("name", UNDER_COMMON_NAMES)
def test_a_public_row_is_the_pair_that_it_means(name, tmp_path):
    pair = one(tmp_path, UNDER_COMMON_NAMES[name])
    assert pair.kind == "pairs"
    assert turns(pair.chosen) == [*ASKED, ("assistant", "Iron.")]
    assert turns(pair.rejected) == [*ASKED, ("assistant", "Wood.")]
    assert not pair.values[1]
    assert pair.values[0]


@pytest.mark.parametrize(
    "row",
    [
        UNDER_COMMON_NAMES["arena"] | {"winner": "tie (bothbad)"},
        UNDER_COMMON_NAMES["helpsteer2 preference"] | {"preference_strength": 0},
    ],
)
def test_a_tie_is_a_tie(row, tmp_path):
    assert one(tmp_path, row).values == (0.0, 0.0)


def test_attributes_of_saferlhf_train_their_heads(tmp_path):
    found = read(tmp_path, UNDER_COMMON_NAMES["saferlhf"], attributes=("better", "safer"))
    chosen = {pair.head: pair.chosen.conversation()[-1].content for pair in found.pairs}
    assert chosen == {"better": "Iron.", "safer": "Wood."}


def test_llama_factory_labels_are_read(tmp_path):
    """KTO in the three forms of its documentation, and of TRL's."""
    rows = [
        {"instruction": "Name a metal.", "input": "", "output": "Iron.", "kto_tag": True},
        {"conversations": [HUMAN, GOOD], "kto_tag": True},
        {
            "messages": [
                {"role": "user", "content": "Name a metal."},
                {"role": "assistant", "content": "Iron."},
            ],
            "label": True,
        },
        {"prompt": "Name a metal.", "completion": "Iron.", "label": True},
    ]
    for row in rows:
        item = one(tmp_path, row)
        assert (item.kind, item.values) == ("labels", (1.0,))
        assert turns(item.samples[0]) == [*ASKED, ("assistant", "Iron.")]


def test_alpaca_joins_instruction_and_input_after_the_history(tmp_path):
    row = {
        "instruction": "Name it.",
        "input": "Fe",
        "chosen": "Iron.",
        "rejected": "Wood.",
        "history": [["Hello", "Hi!"]],
        "system": "Be brief.",
    }
    assert turns(one(tmp_path, row).chosen) == [
        ("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "Name it.\nFe"), ("assistant", "Iron."),
    ]  # fmt: skip


def test_hh_has_the_turns_that_its_text_names(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nIt is late.\n\nHuman: Name a metal.\n\nAssistant:"
    pair = one(tmp_path, {"chosen": f"{start} Iron.", "rejected": f"{start} Wood."})
    assert turns(pair.chosen) == [
        ("user", "Hi"), ("assistant", "Hello.\n\nIt is late."), ("user", "Name a metal."), ("assistant", "Iron."),
    ]  # fmt: skip
    assert pair.chosen_text == "Iron."


ULTRAFEEDBACK = {
    "source": "evol_instruct",
    "instruction": "Name a metal.",
    "models": ["alpaca-7b", "gpt-4"],
    "completions": [
        {
            "annotations": {
                "instruction_following": {"Rating": "5", "Rationale": "r"},
                "honesty": {"Rating": "4", "Rationale": "r"},
                "truthfulness": {"Type": ["None"], "Rationale": "r", "Rating": "5", "Rationale For Rating": "r"},
                "helpfulness": {"Type": ["1"], "Rationale": "r", "Rating": "N/A", "Rationale For Rating": "r"},
            },
            "custom_system_prompt": "As an AI assistant, ...",
            "model": "gpt-4",
            "principle": "helpfulness",
            "response": "Iron.",
            "critique": "c",
            "overall_score": 10.0,
            "fine-grained_score": 4.75,
        },
        {
            "annotations": {"honesty": {"Rating": "1", "Rationale": "r"}},
            "model": "alpaca-7b",
            "response": "Wood.",
            "overall_score": 10.0,
        },
    ],
    "correct_answers": ["None"],
    "incorrect_answers": ["None"],
}


def test_ultrafeedback_has_a_rating_a_response_and_its_attributes(tmp_path):
    found = read(tmp_path, ULTRAFEEDBACK)
    assert [(item.kind, item.texts, item.source) for item in found.items] == [
        ("ratings", ("Iron.",), "evol_instruct"),
        ("ratings", ("Wood.",), "evol_instruct"),
    ]
    assert [item.values[0] for item in found.items] == [pytest.approx(14 / 3), 1.0]
    assert len({item.id for item in found.items}) == 2
    assert len({item.group for item in found.items}) == 1, "responses to one prompt are held out together"
    heads = read(tmp_path, ULTRAFEEDBACK, attributes=("honesty", "truthfulness")).items
    assert [(item.head, item.values) for item in heads] == [
        ("honesty", (4.0,)), ("truthfulness", (5.0,)), ("honesty", (1.0,)),
    ]  # fmt: skip


HELPSTEER = {
    "prompt": "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nName a metal.",
    "response": "Iron.",
    "helpfulness": 3,
    "correctness": 4,
    "coherence": 4,
    "complexity": 1,
    "verbosity": 0,
}


def test_helpsteer_is_rated_by_helpfulness_or_by_attributes(tmp_path):
    item = one(tmp_path, HELPSTEER)
    assert (item.kind, item.values) == ("ratings", (3.0,))
    assert turns(item.samples[0]) == [
        ("user", "Hi"), ("assistant", "Hello."), ("user", "Name a metal."), ("assistant", "Iron."),
    ]  # fmt: skip
    heads = read(tmp_path, HELPSTEER, attributes=("correctness", "verbosity")).items
    assert [(i.head, i.values, turns(i.samples[0])[0]) for i in heads] == [
        ("correctness", (4.0,), ("user", "Hi")), ("verbosity", (0.0,), ("user", "Hi")),
    ]  # fmt: skip


def test_nectar_is_a_ranking(tmp_path):
    row = {
        "prompt": "\n\nHuman: Name a metal.\n\nAssistant: ",
        "answers": [
            {"answer": "Iron.", "model": "gpt-4", "rank": 1.0},
            {"answer": "Metal?", "model": "gpt-3.5-turbo", "rank": 2.0},
            {"answer": "Wood.", "model": "anthropic", "rank": 3.0},
        ],
        "turns": 1,
        "num_responses": 3,
        "source": ["lmsys-chat-1m"],
        "good_natured": True,
    }
    item = one(tmp_path, row)
    assert (item.kind, item.values, item.texts) == ("rankings", (-1.0, -2.0, -3.0), ("Iron.", "Metal?", "Wood."))
    assert turns(item.samples[0]) == [*ASKED, ("assistant", "Iron.")]


def prm800k(*steps, finish_reason="solution"):
    return {
        "labeler": "340d89bc",
        "timestamp": "2023-01-22T04:34:27.052924",
        "generation": 9,
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {"problem": "1+1+1?", "ground_truth_solution": "3", "ground_truth_answer": "3"},
        "label": {"steps": list(steps), "total_time": 278270, "finish_reason": finish_reason},
    }


def step(*completions, chosen=0, human=None):
    given = [{"text": text, "rating": rating, "flagged": None} for text, rating in completions]
    return {"completions": given, "human_completion": human, "chosen_completion": chosen}


def labels(found):
    return [(item.texts[0], item.values[0], item.samples[0].finish_reason) for item in found.items]


def test_prm800k_labels_each_rated_step_once(tmp_path):
    row = prm800k(
        step(("1+1=2", 1)),
        step(("2+1=4", -1), ("Add one.", 0), chosen=1),
        step(("2+1=5", -1), chosen=None, human={"text": "2+1=3", "rating": None}),
    )
    assert labels(read(tmp_path, row)) == [
        ("1+1=2", 1.0, "length"),
        ("1+1=2\nAdd one.", 1.0, "length"),
        ("1+1=2\nAdd one.\n2+1=3", 1.0, "stop"),
        ("1+1=2\n2+1=4", 0.0, "length"),
        ("1+1=2\nAdd one.\n2+1=5", 0.0, "length"),
    ]
    stopped = prm800k(step(("1+1=2", 1)), step(("2+1=4", -1), chosen=None), finish_reason="found_error")
    assert labels(read(tmp_path, stopped)) == [("1+1=2", 1.0, "length"), ("1+1=2\n2+1=4", 0.0, "length")]


def test_math_shepherd_has_a_label_at_each_mark(tmp_path):
    text = "How many? Step 1: The ratio is 5+8 = 13. {} \nStep 2: The waiter ate 6. {}\nStep 3: The answer is: 6 {}"
    row = {"input": text.format("ки", "ки", "ки"), "label": text.format("+", "+", "-"), "task": "GSM8K"}
    found = read(tmp_path, row)
    whole = "Step 1: The ratio is 5+8 = 13.\nStep 2: The waiter ate 6.\nStep 3: The answer is: 6"
    assert [(turns(i.samples[0])[0], i.values[0]) for i in found.items] == [
        (("user", "How many?"), value) for value in (1.0, 1.0, 0.0)
    ]
    assert found.items[-1].texts == (whole,)


BROKEN = {
    "hh that ends with the user": (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a\n\nHuman: b", "rejected": "\n\nHuman: Hi\n\nAssistant: c"},
        "chosen",
    ),
    "no rating in ultrafeedback": (ULTRAFEEDBACK | {"completions": []}, "completions"),
    "a rating that is no number": (
        ULTRAFEEDBACK | {"completions": [{"response": "a", "annotations": {"honesty": {"Rating": "good"}}}]},
        "completions",
    ),
    "a winner that is unknown": (UNDER_COMMON_NAMES["arena"] | {"winner": "both"}, "winner"),
    "a rating of PRM800K beyond its scale": (prm800k(step(("a", 5))), "label"),
    "a step of PRM800K without a text": (
        prm800k({"completions": [{"rating": 1}], "chosen_completion": 0}),
        "question",
    ),
    "a mark that is missing": ({"input": "Q Step 1: a ки", "label": "Q Step 1: a ?", "task": "MATH"}, "label"),
    "no first step": ({"input": "Q a ки", "label": "Q a +", "task": "MATH"}, "input"),
    "three outputs": ({"instruction": "q", "output": ["a", "b", "c"]}, "output"),
    "history of three": ({"instruction": "q", "chosen": "a", "rejected": "b", "history": [["x", "y", "z"]]}, "history"),
    "an unknown ShareGPT role": (
        {"conversations": [{"from": "narrator", "value": "q"}], "chosen": GOOD, "rejected": BAD},
        "chosen",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_row_that_cannot_be_meant_is_a_bad_row_with_its_field(name, tmp_path):
    row, field = BROKEN[name]
    found = read(tmp_path, row)
    assert [bad.field for bad in found.bad] == [field]
    assert not found.items


def test_a_later_row_of_another_shape_is_a_bad_row(tmp_path):
    rows = [HELPSTEER] * 16 + [{"prompt": "q", "response": "a", "rating": 1}]
    (bad,) = read(tmp_path, *rows).bad
    assert bad.line == 17
    assert "shape of helpsteer" in bad.message


def test_the_recipe_may_name_columns_or_no_shape(tmp_path):
    row = UNDER_COMMON_NAMES["hh"]
    for own in ({"prompt_key": None}, {"shape": "none"}):
        assert one(tmp_path, row, **own).chosen.text == row["chosen"]
    assert one(tmp_path, row, shape="hh").chosen.messages[0] == Message("user", "Name a metal.")


def test_a_named_shape_that_the_rows_do_not_have_is_told(tmp_path):
    (bad,) = read(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, shape="nectar").bad
    assert "shape of nectar" in str(bad)


def test_the_shape_is_told(tmp_path):
    assert any(
        "shape of nectar" in note or "shape of hh" in note for note in read(tmp_path, UNDER_COMMON_NAMES["hh"]).notes
    )


def test_a_table_has_the_same_shapes(tmp_path):
    (tmp_path / "d.csv").write_text("instruction,input,chosen,rejected\nName a metal.,,Iron.,Wood.\n")
    (item,) = data.read_source(SourceConfig(str(tmp_path / "d.csv")), head="score").items
    assert turns(item.samples[0]) == [*ASKED, ("assistant", "Iron.")]


def test_parquet_has_the_same_shapes(tmp_path):
    """Its rows have every field of any row, null where there is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = json.loads(json.dumps([UNDER_COMMON_NAMES["sharegpt preference"] | {"tools": None}, ULTRAFEEDBACK]))
    for number, row in enumerate(rows):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist([row]), path)
        found = data.read_source(SourceConfig(str(path)), head="score")
        assert not found.bad
        assert found.items[0].texts[0] == "Iron."
