"""A rendered conversation is a function of the conversation: no clock, no random numbers, no memory addresses."""

from __future__ import annotations

import datetime as real
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from rewardserve.model.backends import LoadError, ModelSpec, load
from rewardserve.model.check import main as check
from rewardserve.model.checkpoint import CheckpointError, ReadOptions, read, write_contract
from rewardserve.model.contract import ContractUnreadable, ScoringContract
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.templates.chat_template import STATED_DATE, EncodingPolicyError
from rewardserve.model.tokenization.encoding_policy import infer_policy
from rewardserve.training.results import export
from tests.support.checkpoints import PROBES, edit_json, language_model, reward_model, sequence_classifier
from tests.support.tiny import CHATML, tiny_tokenizer

LLAMA32 = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- endif %}<|im_start|>system\nToday Date: {{ date_string }}<|im_end|>\n" + CHATML
)
"""As Llama 3.2 writes it."""
GPT_OSS = "<|im_start|>system\nCurrent date: {{ strftime_now('%Y-%m-%d') }}<|im_end|>\n" + CHATML
IN_A_MACRO = "{% macro today() %}{{ strftime_now('%A, %H:%M:%S') }}{% endmacro %}{{ today() }}\n" + CHATML
LATE = "{% if messages | length > 5 %}{{ strftime_now('%Y') }}{% endif %}" + CHATML
"""Asks in long conversations only, which no probe is."""
ASKING = {"llama 3.2": LLAMA32, "gpt-oss": GPT_OSS, "macro": IN_A_MACRO, "late": LATE}

TURNS = tuple(Message(role, f"{role} {i}") for i in range(4) for role in ("user", "assistant"))
SAMPLES = (Sample(prompt="Is it summer?", response="Yes."), Sample(messages=TURNS))
DAYS = ("2026-11-29T23:59:59", "2026-11-30T00:00:01", "1999-01-01T12:34:56")


@pytest.fixture
def today(monkeypatch):
    """Set the clock that transformers gives to templates."""

    def set_clock(moment: str) -> None:
        class Clock(real.datetime):
            @classmethod
            def now(cls, tz=None):
                return real.datetime.fromisoformat(moment)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_clock


def encoder(template: str, **policy) -> Encoder:
    tokenizer = tiny_tokenizer(template)
    policy = infer_policy(tokenizer, max_tokens=400, vocab_size=320, rule=LAYOUT_RULES["language_model"], **policy)
    return Encoder(tokenizer, policy)


def text_of(encode: Encoder, sample: Sample) -> str:
    return encode._fast.decode(encode(sample).ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", ASKING)
def test_the_ids_are_the_same_on_every_day_also_of_a_running_server(name, today):
    today(DAYS[0])
    running = encoder(ASKING[name])
    expected = [running(sample) for sample in SAMPLES]
    for day in DAYS[1:]:
        today(day)
        assert running.many([*SAMPLES]) == expected
        assert [encoder(ASKING[name])(sample) for sample in SAMPLES] == expected


def test_the_date_is_the_stated_one_or_the_one_that_is_asked_for():
    sample = SAMPLES[0]
    assert STATED_DATE == "2024-07-26"
    assert "Today Date: 26 Jul 2024<" in text_of(encoder(LLAMA32), sample)
    assert "Today Date: 01 Feb 2025<" in text_of(encoder(LLAMA32, template_date="2025-02-01"), sample)
    assert "Current date: 2025-02-01<" in text_of(encoder(GPT_OSS, template_date="2025-02-01"), sample)
    assert text_of(encoder(IN_A_MACRO), sample).startswith("Friday, 00:00:00\n")


def test_on_the_day_that_is_frozen_the_text_is_what_transformers_writes(today):
    today("2025-02-01T00:00:00")
    for template in ASKING.values():
        encode = encoder(template, template_date="2025-02-01")
        for sample in SAMPLES:
            chat = [{"role": m.role, "content": m.content} for m in sample.conversation()]
            plain = tiny_tokenizer(template).apply_chat_template(chat, tokenize=False)
            assert text_of(encode, sample) == plain.rstrip("\n")


@pytest.mark.parametrize("name", ASKING)
def test_a_note_says_that_a_template_asks_for_the_date(name):
    [note] = [note for note in encoder(ASKING[name]).notes if "date" in note]
    assert "2024-07-26" in note
    assert "apply_chat_template" in note


def test_no_note_where_it_does_not():
    assert not encoder(CHATML).notes
    assert encoder(CHATML).policy.template_date is None
    assert encoder(CHATML, template_date="2025-02-01").policy.template_date is None


@pytest.mark.parametrize("date", ["today", "2025-2-1", "2025-13-01", "20250201", ""])
def test_what_is_no_date_is_refused(date):
    with pytest.raises(EncodingPolicyError, match="YYYY-MM-DD"):
        encoder(LLAMA32, template_date=date)


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ [1, 2, 3] | random }}" + CHATML, "random"),
        ("{% if messages | length > 5 %}{{ ['a', 'b'] | random }}{% endif %}" + CHATML, "random"),
        ("{% if messages | length > 5 %}{{ messages | map('random') | list }}{% endif %}" + CHATML, "random"),
        ("{{ lipsum(n=1, html=False, min=3, max=4) }}" + CHATML, "lipsum"),
        ("{{ joiner(', ') }}" + CHATML, "address"),
        ("{{ messages | map(attribute='content') }}" + CHATML, "address"),
        ("{{ dict }}" + CHATML, "address"),
    ],
)
def test_a_template_that_is_no_function_of_the_conversation_is_refused(template, what):
    with pytest.raises(EncodingPolicyError, match=what):
        encoder(template)


def test_a_template_that_is_no_template_is_refused_in_words():
    with pytest.raises(EncodingPolicyError, match="chat template"):
        encoder("{% for m in messages %}")


def test_a_template_that_writes_lists_of_parts_alone_is_refused():
    """Idefics 3's, for one: it looks for parts in the characters of a text, and finds none."""
    with pytest.raises(EncodingPolicyError, match="writes no response"):
        encoder(
            "{% for m in messages %}{{ m['role'] | capitalize }}: {% for part in m['content'] %}{% if part['type'] == 'text' %}"
            "{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
        )


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return dated(tmp_path_factory.mktemp("dated") / "rm")


def dated(folder: Path) -> Path:
    """A checkpoint whose template asks for the date: not as we export it, which writes the date into the template."""
    reward_model(folder, template=LLAMA32, contract=False)
    (folder / "chat_template.jinja").write_text(LLAMA32)
    write_contract(folder, probes=PROBES)
    return folder


def test_an_exported_template_has_the_date_of_training_in_plain_transformers(tmp_path, today):
    reward_model(tmp_path / "rm", template=LLAMA32)
    contract = ScoringContract.load(tmp_path / "rm")
    assert contract.template_date is None
    for day in DAYS:
        today(day)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
        text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert "26 Jul 2024" in text
        assert load("torch", ModelSpec(str(tmp_path / "rm"))).report.holds


def test_a_contract_of_ours_holds_on_another_day(written, today):
    today(DAYS[2])
    loaded = load("torch", ModelSpec(str(written)))
    assert loaded.report.holds
    assert loaded.contract.template_date == STATED_DATE
    assert any("date" in note for note in loaded.identity.engine_notes)


def test_the_date_of_a_contract_is_the_one_that_is_served(written, tmp_path):
    contract = json.loads((written / "scoring_contract.json").read_text())
    assert contract["template_date"] == STATED_DATE
    elsewhere = tmp_path / "rm"
    elsewhere.mkdir()
    for path in written.iterdir():
        (elsewhere / path.name).symlink_to(path)
    (elsewhere / "scoring_contract.json").unlink()
    (elsewhere / "scoring_contract.json").write_text(json.dumps({**contract, "template_date": "2025-02-01"}))
    checkpoint = read(str(elsewhere))
    assert checkpoint.policy.template_date == "2025-02-01"
    report = load("torch", ModelSpec(str(elsewhere), contract_mode="warn")).report
    assert [breach.clause for breach in report.breaches] == ["encoding"]
    # An operator's date is for checkpoints that say none.
    assert read(str(elsewhere), ReadOptions(template_date="2023-03-03")).policy.template_date == "2025-02-01"


def test_a_contract_without_a_date_for_a_template_that_asks_for_it_is_broken(tmp_path):
    folder = dated(tmp_path / "rm")
    contract = json.loads((folder / "scoring_contract.json").read_text())
    del contract["template_date"]
    (folder / "scoring_contract.json").write_text(json.dumps(contract))
    report = load("torch", ModelSpec(str(folder), contract_mode="warn")).report
    assert [breach.clause for breach in report.breaches] == ["date"]
    assert "export" in report.breaches[0].remedy


def test_a_date_in_a_contract_that_is_none_is_refused_in_words(tmp_path):
    folder = tmp_path / "rm"
    reward_model(folder, template=LLAMA32)
    edit_json(folder / "scoring_contract.json", template_date="yesterday")
    with pytest.raises(ContractUnreadable, match="template_date"):
        ScoringContract.load(folder)
    with pytest.raises(LoadError, match="template_date"):
        load("torch", ModelSpec(str(folder)))


def test_the_date_of_an_inferred_contract_is_a_setting(tmp_path, capsys):
    sequence_classifier(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(LLAMA32)
    loaded = load("torch", ModelSpec(str(tmp_path), template_date="2025-02-01"))
    assert loaded.contract.template_date == "2025-02-01"
    assert load("torch", ModelSpec(str(tmp_path))).contract.template_date == STATED_DATE
    assert check([str(tmp_path), "--template-date", "2025-02-01"]) == 0
    assert "2025-02-01" in capsys.readouterr().out
    with pytest.raises(LoadError, match="YYYY-MM-DD"):
        load("torch", ModelSpec(str(tmp_path), template_date="soon"))


def test_training_from_a_language_model_takes_the_stated_date(tmp_path, today):
    from rewardserve.model.checkpoint import read_backbone

    language_model(tmp_path, template=GPT_OSS)
    today(DAYS[2])
    checkpoint = read_backbone(str(tmp_path))
    assert checkpoint.policy.template_date == STATED_DATE
    assert "Current date: 2024-07-26" in checkpoint.tokenizer.decode(checkpoint.encoder(SAMPLES[0]).ids)


def test_a_contract_that_is_written_again_keeps_the_date_of_training(tmp_path):
    folder = tmp_path / "rm"
    reward_model(folder, template=LLAMA32, contract=False)
    (folder / "chat_template.jinja").write_text(LLAMA32)
    write_contract(folder, probes=PROBES[:2], options=ReadOptions(template_date="2025-02-01"))
    start = read(str(folder))
    assert start.policy.template_date == "2025-02-01"
    again = export.export_checkpoint(tmp_path / "again", start, PROBES[:2])
    assert again.template_date is None
    assert "01 Feb 2025" in again.template


def test_the_word_random_alone_is_no_random_number():
    template = "{{ 'random' }}{{ messages[0]['name'] | default('random') }}" + CHATML
    assert text_of(encoder(template), SAMPLES[0]).startswith("randomrandom<|im_start|>")


def test_a_random_template_is_named_at_load(tmp_path):
    sequence_classifier(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ [1, 2] | random }}" + CHATML)
    with pytest.raises((LoadError, CheckpointError), match="random"):
        load("torch", ModelSpec(str(tmp_path)))
