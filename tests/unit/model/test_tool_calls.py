"""Tools and tool calls have the ids of `apply_chat_template`, in the template of each family; else they are refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewardserve.model import tools
from rewardserve.model.contract import sample_from_dict, sample_to_dict
from rewardserve.model.conversation import EmptyResponse, InvalidMessages, Message, Sample, ToolCall, UnsupportedField
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.support.tiny import CHATML, tiny_tokenizer
from tests.support.tool_templates import FAMILIES

_CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "City."}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather now.", "parameters": _CITY}},
    {"type": "function", "function": {"name": "get_time", "description": "Time now.", "parameters": _CITY}},
]


def call(name="get_weather", number="abcdefgh1", **arguments):
    return {
        "id": number,
        "type": "function",
        "function": {"name": name, "arguments": arguments or {"city": "Zürich", "days": 2, "exact": True}},
    }


ASKED = {"role": "user", "content": "How warm is it?"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [call()]}
RESULT = {"role": "tool", "content": '{"celsius": 3}', "tool_call_id": "abcdefgh1", "name": "get_weather"}
TALKS = {
    "ends with a call": [ASKED, CALLING],
    "ends with an answer": [ASKED, CALLING, RESULT, {"role": "assistant", "content": "Three degrees."}],
    "two rounds": [
        ASKED, CALLING, RESULT, {"role": "assistant", "content": "Three degrees."}, {"role": "user", "content": "And the time?"},
        CALLING | {"tool_calls": [call("get_time", "abcdefgh2", city="Bern")]},
    ],
}  # fmt: skip


def encoder_of(tokenizer, rule="language_model"):
    policy = infer_policy(tokenizer, max_tokens=2000, vocab_size=len(tokenizer), rule=LAYOUT_RULES[rule])
    return Encoder(tokenizer, policy)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    tokenizer = FAMILIES[request.param].tokenizer()
    return request.param, tokenizer, encoder_of(tokenizer)


def sample(talk, listed=TOOLS, **fields):
    return Sample(
        messages=tuple(
            Message(
                m["role"], m["content"] or "", tools.read_calls(m.get("tool_calls", ())), m.get("tool_call_id", ""),
                m.get("name", ""),
            )
            for m in talk
        ),
        tools=tools.read_tools(listed),
        **fields,
    )  # fmt: skip


def rendered(tokenizer, talk, listed=TOOLS):
    # transformers drops a content of null, without which DeepSeek's templates write no calls.
    hidden = tokenizer.chat_template.replace("m.content is none", "m.content is not defined")
    ids = tokenizer.apply_chat_template(talk, tools=listed, chat_template=hidden, return_dict=False)
    end = max((i for i, each in enumerate(ids) if each == tokenizer.eos_token_id), default=len(ids))
    return (*ids[:end], tokenizer.eos_token_id)  # GLM's template leaves it to the trainer


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("listed", [TOOLS, None], ids=["tools", "no tools"])
def test_the_ids_are_those_of_apply_chat_template(family, name, listed):
    family_name, tokenizer, encode = family
    # Where the template fails on null, conversations have the empty text instead.
    talk = [m | {"content": ""} if family_name == "granite" and m["content"] is None else m for m in TALKS[name]]
    encoded = encode(sample(talk, listed))
    assert encoded.ids == rendered(tokenizer, talk, listed)
    prompt = tokenizer.decode(encoded.ids[: encoded.n_prompt])
    assert "How warm is it?" in prompt
    response = tokenizer.decode(encoded.response)
    assert ("get_time" if name == "two rounds" else "get_weather" if "call" in name else "Three degrees.") in response
    assert encode(sample(talk, listed)) == encoded, "and again, from the cache"


def test_what_is_in_the_cache_for_other_tools_is_not_taken(family):
    _, tokenizer, encode = family
    talk = [m | {"content": m["content"] or ""} for m in TALKS["ends with an answer"]]
    with_one = encode(sample(talk, TOOLS[:1]))
    assert tokenizer.decode(with_one.ids).count("get_time") == 0
    assert encode(sample(talk, TOOLS)) != with_one


def test_arguments_as_text_are_those_as_an_object(family):
    _, _, encode = family
    given = call()
    as_text = given | {
        "function": given["function"] | {"arguments": '{"city": "Z\\u00fcrich", "days": 2, "exact": true}'}
    }
    assert encode(sample([ASKED, CALLING | {"tool_calls": [as_text]}])) == encode(sample([ASKED, CALLING]))


@pytest.mark.parametrize("where", ["arguments", "tools"])
def test_a_control_token_in_tools_or_arguments_forges_no_turn(family, where):
    _, tokenizer, encode = family
    end = tokenizer.eos_token

    def encoded(city):
        function = TOOLS[0]["function"] | {"description": city if where == "tools" else "Weather."}
        talk = [ASKED, CALLING | {"tool_calls": [call(city=city if where == "arguments" else "Bern")]}]
        return encode(sample(talk, [{"type": "function", "function": function}]))

    quoting, harmless = encoded(f"a{end}b"), encoded("ab")
    assert quoting.ids.count(tokenizer.eos_token_id) == harmless.ids.count(tokenizer.eos_token_id)
    assert f"a{end}b" in tokenizer.decode(quoting.ids)


def test_a_control_token_that_the_template_would_change_is_refused():
    family = FAMILIES["qwen"]
    shouting = replace(family, template=family.template.replace("arguments | tojson", "arguments | string"))
    encode = encoder_of(shouting.tokenizer())
    assert encode(sample(TALKS["ends with a call"])).ids
    with pytest.raises(InvalidMessages, match="quote a control token"):
        encode(sample([ASKED, CALLING | {"tool_calls": [call(city="a<|im_end|>b")]}]))


def test_a_template_that_writes_no_tools_refuses_them_by_name():
    for template in (CHATML, None):
        tokenizer = tiny_tokenizer(template)
        if template is None:
            policy = infer_policy(tokenizer, max_tokens=400, vocab_size=320, rule=LAYOUT_RULES["language_model"])
            encode = Encoder(tokenizer, replace(policy, template=""))
        else:
            encode = encoder_of(tokenizer)
        with pytest.raises(UnsupportedField, match=r"^tools is not supported by the chat template"):
            encode(sample([ASKED, {"role": "assistant", "content": "Three."}]))
        with pytest.raises(UnsupportedField, match=r"^tool_calls is not supported by the chat template"):
            encode(sample(TALKS["ends with an answer"], None))
        encode(sample([ASKED, {"role": "assistant", "content": "Three."}], None))


def test_calls_that_the_template_refuses_are_refused_with_its_words():
    encode = encoder_of(FAMILIES["llama"].tokenizer())
    with pytest.raises(InvalidMessages, match="single tool-calls"):
        encode(sample([ASKED, CALLING | {"tool_calls": [call(), call()]}]))
    encode = encoder_of(FAMILIES["mistral"].tokenizer())
    with pytest.raises(InvalidMessages, match="length 9"):
        encode(sample([ASKED, CALLING | {"tool_calls": [call(number="1")]}]))


def test_a_long_conversation_loses_the_beginning_of_its_prompt_alone(family):
    _, tokenizer, _ = family
    policy = infer_policy(tokenizer, max_tokens=120, vocab_size=len(tokenizer), rule=LAYOUT_RULES["language_model"])
    talk = [ASKED | {"content": "hi " * 200}, CALLING | {"content": ""}]
    cut, whole = Encoder(tokenizer, policy)(sample(talk)), encoder_of(tokenizer)(sample(talk))
    assert cut.truncated
    assert len(cut.ids) == 120
    assert cut.response == whole.response


def test_a_response_without_text_and_calls_is_empty():
    encode = encoder_of(FAMILIES["qwen"].tokenizer())
    with pytest.raises(EmptyResponse):
        encode(sample([ASKED, {"role": "assistant", "content": ""}]))


def test_a_sample_with_tools_survives_its_file():
    whole = sample(TALKS["two rounds"])
    assert sample_from_dict(sample_to_dict(whole)) == whole
    plain = Sample(messages=(Message("user", "a"), Message("assistant", "b")))
    assert sample_to_dict(plain) == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    }, "as before there were tools: digests stay"


@pytest.mark.parametrize(
    "value",
    [3, "no JSON", [3], [{"function": 3}], [{"function": {"name": ""}}], [{"function": {"name": "f", "arguments": "[]"}}],
     [{"function": {"name": "f", "arguments": "{"}}]],
)  # fmt: skip
def test_calls_that_are_none_are_refused(value):
    with pytest.raises(InvalidMessages):
        tools.read_calls(value)


def test_shapes_of_calls_and_tools():
    one = (ToolCall("f", '{"a": "ü"}', ""),)
    assert tools.read_calls([{"function": {"name": "f", "arguments": {"a": "ü"}}}]) == one
    assert tools.read_calls('{"name": "f", "arguments": {"a": "\\u00fc"}}') == one
    assert tools.read_calls([{"id": "x", "function": {"name": "f", "arguments": ""}}]) == (ToolCall("f", "{}", "x"),)
    assert tools.read_tools('[{"name": "f"}]') == '[{"type": "function", "function": {"name": "f"}}]'
    assert tools.read_tools("") == tools.read_tools([]) == tools.read_tools("[]") == ""
    for wrong in (3, "{}", "[1]", "no"):
        with pytest.raises(InvalidMessages):
            tools.read_tools(wrong)
