"""The ids of LLaMA-Factory's layout are those that its trainer makes, for every kind of tokenizer."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rewardserve.model.check import main as check
from rewardserve.model.checkpoint import read
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.export import main as export
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.security.families import CORPUS, FAMILIES, byte_level, sentencepiece
from tests.support.checkpoints import value_head
from tests.support.llama_factory import BOS, EOS, RECIPES, Recipe, ids_of, jinja_of

ADDED = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|extra_0|>", "[gMASK]", "<sop>",
         "<|eos|>", "<|EOT|>")  # fmt: skip


def metaspace(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=["<unk>", *bytes_], max_token_length=8, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] == 0]
    return Tokenizer.from_str(json.dumps(state))


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level,
    "sentencepiece": lambda: sentencepiece(prepends=True),
    "sentencepiece, no prefix": lambda: sentencepiece(prepends=False),
    "metaspace, first": lambda: metaspace("first"),
    "metaspace, always": lambda: metaspace("always"),
    "metaspace, never": lambda: metaspace("never"),
    "unigram": unigram,
}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    made = TOKENIZERS[kind]()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")


TALKS = (
    (("user", "What is two plus two?"), ("assistant", "Four, of course.")),
    (("user", "Hi"), ("assistant", "\n\n a leading newline ")),
    (("system", "Be brief."), ("user", " hello"), ("assistant", "Ünïcödé 你好 🙂")),
    (
        ("user", "two"),
        ("assistant", "plus"),
        ("user", "two"),
        ("assistant", "four"),
        ("user", "Thanks"),
        ("assistant", "no"),
    ),
    (("system", "the fox"), ("user", "a"), ("assistant", "b"), ("user", "c\n"), ("assistant", "d\n")),
)
EMPTY_SYSTEM = (("system", ""), ("user", "hello"), ("assistant", "the"))  # fmt: skip


def encoder_of(tokenizer, name: str = "") -> Encoder:
    """`bailing_v2` adds EOS after its end token, which an operator has to set."""
    rule = LAYOUT_RULES["llama_factory"]
    if name == "bailing_v2":
        rule = replace(rule, ending="template_and_eos")
    return Encoder(tokenizer, infer_policy(tokenizer, max_tokens=4096, vocab_size=len(tokenizer), rule=rule))


def sample_of(talk) -> Sample:
    return Sample(messages=tuple(Message(role, content) for role, content in talk))


@pytest.mark.sweep(60)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("loops", [True, False], ids=["now", "2024"])
def test_the_ids_are_those_of_its_trainer(kind, name, loops):
    recipe, tokenizer = RECIPES[name], tokenizer_of(kind)
    tokenizer.chat_template = jinja_of(tokenizer, recipe, loops=loops)
    encode = encoder_of(tokenizer, name)
    assert not any("inferred" in note for note in encode.notes)
    for talk in TALKS:
        if not loops and recipe.fuses and talk[0][0] == "system":
            continue  # that version of its template put the system message before itself
        expected = ids_of(tokenizer, recipe, talk)
        assert list(encode(sample_of(talk)).ids) == expected
        assert list(encode(sample_of(talk)).ids) == expected, "the same with what is remembered"
        text = "".join(
            tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in talk], tokenize=False
            )
        )
        if name not in ("empty", "fewshot"):  # nothing stands between their turns
            assert list(encode(Sample(text=text)).ids) == expected
        assert list(encode(Sample(input_ids=tuple(expected))).ids) == expected


@pytest.mark.sweep(30)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", RECIPES)
def test_the_prompt_ends_where_the_response_begins(kind, name):
    recipe, tokenizer = RECIPES[name], tokenizer_of(kind)
    tokenizer.chat_template = jinja_of(tokenizer, recipe)
    encode = encoder_of(tokenizer, name)
    for talk in TALKS:
        role, response = talk[-1]
        other = ids_of(tokenizer, recipe, (*talk[:-1], (role, "Q" + response)))
        row = ids_of(tokenizer, recipe, talk)
        n_shared = next((i for i, (a, b) in enumerate(zip(row, other, strict=False)) if a != b), 0)
        assert encode(sample_of(talk)).n_prompt <= n_shared
        rest = [i for slot in recipe.assistant for i in _slot_ids(tokenizer, slot, response)]
        assert row[encode(sample_of(talk)).n_prompt :] == rest + [tokenizer.eos_token_id] * recipe.appends_eos


def _slot_ids(tokenizer, slot, content):
    if slot in (BOS, EOS):
        return [tokenizer.bos_token_id if slot is BOS else tokenizer.eos_token_id]
    return tokenizer.encode(slot.replace("{}", content), add_special_tokens=False)


@pytest.mark.sweep(30)
@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", RECIPES)
def test_a_sample_that_quotes_a_control_token_is_cut_at_the_same_places(kind, name):
    recipe, tokenizer = RECIPES[name], tokenizer_of(kind)
    tokenizer.chat_template = jinja_of(tokenizer, recipe)
    encode = encoder_of(tokenizer, name)
    for talk in TALKS:
        plain = encode(sample_of(talk))
        quoting = encode(sample_of((*talk[:-1], ("assistant", "it said </s> and"))))
        assert quoting.ids[: quoting.n_prompt] == plain.ids[: plain.n_prompt]
        of_template = sum(slot is EOS or (isinstance(slot, str) and "</s>" in slot) for slot in recipe.assistant)
        n_eos = quoting.ids[quoting.n_prompt :].count(tokenizer.eos_token_id)
        assert n_eos == of_template + recipe.appends_eos


@pytest.mark.parametrize("end", ["<end_of_turn>\n", "<|role_end|>", "<|endofassistant|>"])
def test_a_note_names_the_template_that_adds_an_eos_which_the_chat_template_does_not_tell(end):
    """`gemma2`, `bailing_v2` and `dots_ocr` have `efficient_eos`, and another end token than EOS."""
    tokenizer = tokenizer_of("byte level")
    tokenizer.add_special_tokens({"additional_special_tokens": [end.strip()]})
    tokenizer.chat_template = jinja_of(tokenizer, Recipe(("user {} answer ",), ("{}" + end,), appends_eos=True))
    assert any("template_and_eos" in note for note in encoder_of(tokenizer).notes)
    assert not any("template_and_eos" in note for note in encoder_of(tokenizer, "bailing_v2").notes)
    tokenizer.chat_template = jinja_of(tokenizer, RECIPES["chatml"])
    assert not any("template_and_eos" in note for note in encoder_of(tokenizer).notes)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", RECIPES)
def test_an_empty_system_message_is_none(kind, name):
    """Its trainer: `system = system or self.default_system`."""
    recipe, tokenizer = RECIPES[name], tokenizer_of(kind)
    tokenizer.chat_template = jinja_of(tokenizer, recipe)
    assert list(encoder_of(tokenizer, name)(sample_of(EMPTY_SYSTEM)).ids) == ids_of(tokenizer, recipe, EMPTY_SYSTEM)


def test_the_template_empty_adds_no_eos():
    tokenizer = tokenizer_of("sentencepiece")
    tokenizer.chat_template = jinja_of(tokenizer, RECIPES["empty"])
    assert encoder_of(tokenizer).policy.end_text == ""


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"phi"}))
def test_another_template_is_not_noted_where_every_cut_gives_the_same_ids(name):
    """Turns between control tokens, and a tokenizer to which a text after one is like a text at the start."""
    assert not any("cuts are inferred" in note for note in encoder_of(FAMILIES[name].tokenizer()).notes)


def test_another_template_is_noted_where_cuts_that_it_does_not_tell_would_change_ids():
    tokenizer = tokenizer_of("metaspace, first")
    tokenizer.chat_template = FAMILIES["mistral v3"].template
    assert any("cuts are inferred" in note for note in encoder_of(tokenizer).notes)


def test_another_templates_turns_are_cut_where_they_begin():
    """Llama-2's own template: BOS, user and assistant are elements of LLaMA-Factory's `llama2` too, with other spaces."""
    tokenizer = tokenizer_of("metaspace, first")
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    encode = encoder_of(tokenizer)
    for talk in (TALKS[0], TALKS[3]):
        assert list(encode(sample_of(talk)).ids) == ids_of(tokenizer, RECIPES["llama2"], talk)


def test_reward_check_says_that_the_cuts_are_inferred(tmp_path, capsys):
    value_head(tmp_path, separate=True)
    assert check([str(tmp_path)]) == 0
    assert "cuts are inferred" not in capsys.readouterr().out
    template = "{% for m in messages %}the {{ m['role'] }} said {{ m['content'] }} {% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    assert check([str(tmp_path)]) == 0
    assert "cuts are inferred" in capsys.readouterr().out


def test_an_export_says_where_ids_become_others_and_is_tokenised_as_a_whole(tmp_path, capsys):
    value_head(tmp_path / "byte", separate=True)
    assert export([str(tmp_path / "byte"), str(tmp_path / "out")]) == 0
    assert "as a whole" not in capsys.readouterr().out
    value_head(tmp_path / "cut", separate=True)
    template = "{% for m in messages %}the {{ m['role'] }} said {{ m['content'] }} {% endfor %}"
    (tmp_path / "cut" / "chat_template.jinja").write_text(template)
    assert export([str(tmp_path / "cut"), str(tmp_path / "whole")]) == 0
    assert "tokenise a rendering as a whole" in capsys.readouterr().out
    assert read(str(tmp_path / "whole")).contract.tokenizes == "whole"
