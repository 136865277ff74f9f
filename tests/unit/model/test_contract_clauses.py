"""Each clause of a contract as a function of plain values: breaches word for word, the file, samples of probes."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

import pytest

from rewardserve.model.contract import (
    FILE_NAME,
    FORMAT,
    ContractReport,
    ContractUnreadable,
    ObservedFacts,
    Probe,
    ScoringContract,
    sample_from_dict,
    sample_to_dict,
    verify,
)
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.layout_rules import LayoutRule

PROBES = (Probe({"text": "a"}, (5, 6, 7), 1.5, 0.25), Probe({"text": "b"}, (8, 9), -2.0, 0.5))
FACTS = ObservedFacts(
    template_digest="sha256:0123456789abcdef", bos_id=1, end_text="</s>", end_ids=(2,), pad_id=0,
    tokenizer_digest="sha256:1123456789abcdef", weights_digest="sha256:2123456789abcdef",
    head_digest="sha256:3123456789abcdef", dtype="float32", template_date="2026-01-31",
)  # fmt: skip
CONTRACT = ScoringContract(
    template="{{ 'é' }}", template_digest=FACTS.template_digest, bos_id=1, end_text="</s>", end_ids=(2,),
    template_tail="</s>", ending="end_token", reads_at="last_non_pad", skip_id=0, bos_without_template="none", tokenizes="whole",
    truncation="prompt_left", max_tokens=512, pad_id=0, tokenizer_digest=FACTS.tokenizer_digest,
    weights_digest=FACTS.weights_digest, head_digest=FACTS.head_digest, dtype="float32", heads=(("score", 1.0),),
    probes=PROBES, dtype_tolerance=(("bfloat16", 1.0),), template_date="2026-01-31",
)  # fmt: skip
IDS, SCORES = tuple(p.ids for p in PROBES), tuple(p.score for p in PROBES)
OTHER = "sha256:ffffffffffffffff"
RESTORE = "restore the tokenizer files that training wrote, or export the checkpoint again."


def broken(message: str) -> list[str]:
    """A row of the table below: clause, message, remedy."""
    clause, text, remedy = message.split(" | ")
    return [f"contract clause '{clause}' is broken: {text} Remedy: {remedy}"]


def report(facts=FACTS, ids=IDS, scores=SCORES, contract=CONTRACT) -> ContractReport:
    return verify(contract, facts, ids, scores)


def breaches(*args, **kwargs) -> list[str]:
    return [str(each) for each in report(*args, **kwargs).breaches]


def test_a_model_that_is_as_its_contract_says_has_no_breach():
    assert report() == ContractReport("written", (), 2, 0.0)
    assert report().holds


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"template_digest": OTHER},
            "template | the chat template is sha256:ffffffffffff, training used sha256:0123456789ab. | "
            "restore the template from the field `template` of scoring_contract.json.",
        ),
        (
            {"template_date": None},
            "date | the chat template gets the date None, the contract has 2026-01-31. | "
            "export the checkpoint again, or set template_date in scoring_contract.json to the date of training.",
        ),
        ({"bos_id": None}, f"bos | BOS is None, training used 1. | {RESTORE}"),
        (
            {"end_text": "<eos>"},
            f"eos | a response ends with '<eos>' (2,), training used '</s>' (2,). | {RESTORE}",
        ),
        ({"end_ids": (3,)}, f"eos | a response ends with '</s>' (3,), training used '</s>' (2,). | {RESTORE}"),
        (
            {"pad_id": 4},
            "pad | the pad token is 4, training used 0. | set pad_token_id to 0 in config.json and in the tokenizer.",
        ),
        (
            {"tokenizer_digest": OTHER},
            f"tokenizer | the tokenizer is sha256:ffffffffffff, training used sha256:1123456789ab. | {RESTORE}",
        ),
        (
            {"head_digest": OTHER},
            "head | the value head is sha256:ffffffffffff, training wrote sha256:3123456789ab. | "
            "restore the head that training wrote (score.weight and reward_heads.safetensors).",
        ),
        (
            {"weights_digest": OTHER},
            "weights | the backbone is sha256:ffffffffffff, training wrote sha256:2123456789ab. | "
            "restore the weights that training wrote, or export a contract for these.",
        ),
    ],
)
def test_a_clause_that_is_broken_alone_is_named_alone(change, expected):
    facts = replace(FACTS, **change)
    assert breaches(facts) == broken(expected)
    assert breaches(facts, scores=(math.nan, 9.0)) == broken(expected), "scores differ because of it"
    assert not report(facts).holds


def test_digests_that_differ_late_differ():
    for name in ("template_digest", "tokenizer_digest", "head_digest", "weights_digest"):
        assert len(breaches(replace(FACTS, **{name: getattr(FACTS, name)[:-1] + "0"}))) == 1


def test_every_broken_clause_is_named_and_the_date_only_where_the_template_is_the_same():
    facts = replace(
        FACTS, template_digest=OTHER, template_date=None, bos_id=7, end_ids=(), pad_id=9, tokenizer_digest=OTHER,
        head_digest=OTHER, weights_digest=OTHER,
    )  # fmt: skip
    named = [breach.clause for breach in report(facts, ids=((), ())).breaches]
    assert named == ["template", "bos", "eos", "pad", "tokenizer", "head", "weights"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (((5, 4, 7), (1,)), "probe 0 encodes to 3 ids, training had 3; the first difference is at 1."),
        (((5, 6, 7), (8, 9, 1)), "probe 1 encodes to 3 ids, training had 2; the first difference is at 2."),
        (((5, 6), (8, 9)), "probe 0 encodes to 2 ids, training had 3; the first difference is at 2."),
        (((), ()), "probe 0 encodes to 0 ids, training had 3; the first difference is at 0."),
    ],
)
def test_the_first_probe_with_other_ids_is_named_and_its_score_is_not(ids, message):
    remedy = "serve with the versions of transformers and tokenizers that training used, or export the contract again."
    assert breaches(ids=ids, scores=(9.0, math.nan)) == broken(f"encoding | {message} | {remedy}")
    both = report(replace(FACTS, head_digest=OTHER), ids=ids)
    assert [breach.clause for breach in both.breaches] == ["encoding", "head"]


@pytest.mark.parametrize(
    ("scores", "message", "largest"),
    [
        ((1.75, -2.5), None, 0.5),
        ((1.25, -1.5), None, 0.5),
        ((1.9, -2.0), "1 of 2 golden probes are off, the worst (probe 0) by 0.4; 0.25 is allowed", 0.4),
        ((1.75, -1.4), "1 of 2 golden probes are off, the worst (probe 1) by 0.6; 0.5 is allowed", 0.6),
        ((2.5, -1.0), "2 of 2 golden probes are off, the worst (probe 0) by 1; 0.25 is allowed", 1.0),
        ((1.9, -2.5), "1 of 2 golden probes are off, the worst (probe 0) by 0.4; 0.25 is allowed", 0.5),
        ((9.0, math.nan), "2 of 2 golden probes are off, the worst (probe 1) by nan; 0.5 is allowed", 7.5),
        ((math.nan, 1.0), "2 of 2 golden probes are off, the worst (probe 0) by nan; 0.25 is allowed", 3.0),
        ((math.inf, -2.0), "1 of 2 golden probes are off, the worst (probe 0) by inf; 0.25 is allowed", 0.0),
    ],
)
def test_scores_may_be_off_by_the_tolerance_of_their_probe_and_no_more(scores, message, largest):
    cause = (
        "check the versions of torch and transformers and the attention kernel; `rewardserve check` prints both sides."
    )
    expected = broken(f"scores | {message}, though weights, head and ids are the same. | {cause}") if message else []
    assert breaches(scores=scores) == expected
    assert report(scores=scores).max_probe_error == pytest.approx(largest)


def test_a_type_has_its_own_tolerance_where_it_is_larger_and_is_named_where_it_is_exceeded():
    reduced = replace(FACTS, dtype="bfloat16")
    assert report(reduced, scores=(2.5, -3.0)).holds
    assert breaches(reduced, scores=(3.0, -2.0)) == broken(
        "dtype | 1 of 2 golden probes are off, the worst (probe 0) by 1.5; 1 is allowed when served in bfloat16; "
        "training scored in float32. | serve with dtype=float32."
    )
    assert CONTRACT.tolerance_for("bfloat16", replace(PROBES[0], tolerance=3.0)) == 3.0
    assert CONTRACT.tolerance_for("float16", replace(PROBES[0], tolerance=0.001)) == 0.001


def test_without_a_probe_there_is_no_score_to_be_off():
    assert report(ids=(), scores=(), contract=replace(CONTRACT, probes=())) == ContractReport("written", (), 0, None)
    assert report(scores=(math.nan, math.inf)).max_probe_error is None


@pytest.mark.parametrize("given", [{"ids": IDS[:1]}, {"scores": SCORES[:1]}])
def test_a_probe_without_ids_or_score_is_an_error(given):
    with pytest.raises(ValueError, match="zip"):
        report(**given)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_is_ascii_a_clause_a_line_and_its_digest_is_that_of_what_it_holds(tmp_path):
    CONTRACT.save(tmp_path)
    text = (tmp_path / "scoring_contract.json").read_text()
    assert text.isascii()
    assert text.startswith('{\n "template": ')
    assert text.endswith("\n}\n")
    compact = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert CONTRACT.digest == "sha256:" + hashlib.sha256(compact.encode()).hexdigest()
    assert ScoringContract.load(tmp_path) == CONTRACT


def test_a_folder_without_the_file_has_no_contract(tmp_path):
    assert ScoringContract.load(tmp_path) is None


def test_numbers_of_a_file_written_by_hand_are_floats(tmp_path):
    edited(tmp_path, heads=[["score", 2]], dtype_tolerance=[["float16", 1]])
    read = ScoringContract.load(tmp_path)
    assert [type(read.heads[0][1]), type(read.dtype_tolerance[0][1])] == [float, float]


def edited(folder, drop=None, **changes) -> None:
    CONTRACT.save(folder)
    raw = {**json.loads((folder / FILE_NAME).read_text()), **changes}
    raw.pop(drop, None)
    (folder / FILE_NAME).write_text(json.dumps(raw))


UNREADABLE = "scoring_contract.json is unreadable: {}. Export the checkpoint again."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": 1},
            f"scoring_contract.json has format 1; this version reads {FORMAT}. Export the checkpoint again",
        ),
        (
            {"drop": "format"},
            f"scoring_contract.json names no format; this version reads {FORMAT}. Export the checkpoint again",
        ),
        ({"zebra": 1, "aardvark": 2}, "scoring_contract.json: unknown clauses ['aardvark', 'zebra']"),
        ({"drop": "ending"}, UNREADABLE.format("ending is missing")),
        ({"drop": "probes"}, UNREADABLE.format("probes is missing")),
        (
            {"ending": "newline"},
            UNREADABLE.format(
                "ending must be one of template, template_or_eos, template_and_eos, end_token, eos, not 'newline'"
            ),
        ),
        (
            {"reads_at": "first"},
            UNREADABLE.format("reads_at must be one of last, last_non_pad, not 'first'"),
        ),
        (
            {"bos_without_template": None},
            UNREADABLE.format("bos_without_template must be one of tokenizer, none, not None"),
        ),
        ({"max_tokens": "many"}, UNREADABLE.format("max_tokens must be a whole number, not a text")),
        ({"pad_id": True}, UNREADABLE.format("pad_id must be a whole number, not true or false")),
        ({"heads": [["score"]]}, UNREADABLE.format("heads[0] must have 2 items, not 1")),
        ({"probes": [{}]}, UNREADABLE.format("probes[0].sample is missing")),
        (
            {"probes": [{"sample": {"prompt": "a", "response": 5}, "ids": [1], "score": 0.5, "tolerance": 0.1}]},
            UNREADABLE.format("probes[0].sample.response must be a text, not a whole number"),
        ),
        ({"probes": [3]}, UNREADABLE.format("probes[0] must be an object, not a whole number")),
        *(
            (
                {"template_date": date},
                UNREADABLE.format(f"template_date: must be a date of the form YYYY-MM-DD, not {date!r}"),
            )
            for date in ("31 January 2026", "20260131", "2026-02-30", "")
        ),
        (
            {"template_date": 20260131},
            UNREADABLE.format("template_date: must be a date of the form YYYY-MM-DD, not 20260131"),
        ),
    ],
)
def test_a_file_that_cannot_be_understood_is_refused_with_the_clause(tmp_path, changes, message):
    edited(tmp_path, **changes)
    with pytest.raises(ContractUnreadable) as error:
        ScoringContract.load(tmp_path)
    assert str(error.value) == message


@pytest.mark.parametrize("text", ["", "{", '{"format": 2, "heads": 3}', '{"format": 2}'])
def test_a_file_that_is_damaged_is_refused(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ContractUnreadable, match="Export the checkpoint again"):
        ScoringContract.load(tmp_path)


def test_a_file_of_a_template_without_a_date_may_leave_the_date_out(tmp_path):
    edited(tmp_path, drop="template_date")
    assert ScoringContract.load(tmp_path) == replace(CONTRACT, template_date=None)


def test_the_rule_is_the_clauses_of_the_contract():
    assert CONTRACT.rule == LayoutRule("end_token", "last_non_pad", "none", "whole", "scoring_contract.json says so")


# -- samples of probes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "written"),
    [
        (Sample(prompt="p", response="r"), {"prompt": "p", "response": "r"}),
        (Sample(prompt="p", response=""), {"prompt": "p", "response": ""}),
        (
            Sample(prompt=(Message("user", "u"),), response="r", finish_reason="length"),
            {"prompt": [{"role": "user", "content": "u"}], "response": "r", "finish_reason": "length"},
        ),
        (Sample(messages=(Message("user", "u"),)), {"messages": [{"role": "user", "content": "u"}]}),
        (Sample(messages=()), {"messages": []}),
        (Sample(text="t"), {"text": "t"}),
        (Sample(text=""), {"text": ""}),
        (Sample(input_ids=(1, 2)), {"input_ids": [1, 2]}),
        (Sample(input_ids=()), {"input_ids": []}),
    ],
)
def test_a_sample_is_written_with_the_fields_of_a_request(sample, written):
    assert sample_to_dict(sample) == written
    assert sample_from_dict(json.loads(json.dumps(written))) == sample
