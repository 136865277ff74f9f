# ruff: noqa: E501
"""A chat template that takes for ever, or all memory, harms nothing but itself; any other writes what transformers writes."""

from __future__ import annotations

import gc
import threading
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from model import jinja
from model.checkpoint.exporting import exported_template
from model.encoding import infer_policy
from model.jinja import Apart, Plain, TemplateBroken, TemplateRefuses, cost_if_plain, reachable, renderer
from model.layout_rules import LAYOUT_RULES
from tests.support.tiny import CHATML, tiny_tokenizer

NOW = datetime(2024, 7, 26)
HELLO = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": " hi "}],
         "add_generation_prompt": False, "bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}  # fmt: skip
LOOP = "{% for i in range(99999) %}{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
DOUBLE = (
    "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}"
)
HOSTILE = {
    "nested loops": LOOP,
    "loops over messages": "{% for a in messages %}" * 40 + "x" + "{% endfor %}" * 40,
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "two calls a level": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "multiplied": "{{ messages[0].content * 99999999999 }}",
    "multiplied when compiled": "{{ 'a' * 99999999999 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a format": "{{ '%99999999999d' % 1 }}",
    "a format of a name": "{% set f = '%99999999999d' %}{{ f % 2 }}",
    "a format of no loop": "{% set loop = namespace(x='%99999999999d') %}{{ loop.x % 2 }}",
    "a name that means another thing": "{% set namespace = messages[0].content.ljust %}{{ namespace(99999999999) }}",
    "padded": "{{ messages[0].content.ljust(99999999999) }}",
    "centred": "{{ 'a' | center(99999999999) }}",
    "doubled": DOUBLE,
    "doubled in a block": "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}"
                          "{% set ns.s = t %}{% endfor %}{{ ns.s | length }}",
    "a block that each round uses": "{% set b %}{% for m in messages * 9 %}{{ m.content * 9999 }}{% endfor %}{% endset %}"
                                    "{% for m in messages * 9999 %}{{ b }}{% for n in messages * 9999 %}{{ b }}{% endfor %}{% endfor %}",
    "doubled by way of a name": "{% set ns = namespace(s='aaaaaaaa') %}{% for m in messages * 30 %}{% set t = ns.s + ns.s %}{% set ns.s = t %}"
                                "{% endfor %}{{ ns.s | length }}",
    "doubled in tools' name": "{% set tools = range(60) %}{% set ns = namespace(s='aaaaaaaa') %}{% for t in tools %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "loops over the letters": "{% for m in messages %}{% for c in m.content %}{% for d in range(99999) %}{% for e in range(99999) %}{% endfor %}{% endfor %}{% endfor %}{% endfor %}",
    "a message that is another": "{% set ns = namespace(s='aaaaaaaa') %}{% for m in messages %}{% set m = namespace(x=range(99999)) %}"
                                 "{% for a in m.x %}{% for a in m.x %}{% endfor %}{% endfor %}{% endfor %}",
    "lists": "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "a pattern of replacements": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('a', 'aa') %}{% endfor %}",
    "much text": "{% for i in range(99999) %}{% for j in range(99999) %}{{ messages[0].content }}{% endfor %}{% endfor %}",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _little(monkeypatch):
    monkeypatch.setattr(jinja, "MAX_CPU_S", 1)


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_takes_too_much_is_refused_and_ends(template):
    assert cost_if_plain(template) is None
    with pytest.raises((TemplateBroken, TemplateRefuses)):
        Apart(template).render(HELLO, NOW)


def test_one_that_is_tame_until_a_word_comes_is_refused_for_that_conversation_alone():
    template = renderer("{% if messages[0].content == 'now' %}" + LOOP + "{% endif %}{{ messages[0].content }}")
    assert template.render(HELLO, NOW) == "hello"
    with pytest.raises(TemplateRefuses, match="too much CPU time"):
        template.render({**HELLO, "messages": [{"role": "user", "content": "now"}]}, NOW)
    assert template.render(HELLO, NOW) == "hello", "started again"


def test_another_template_is_rendered_meanwhile():
    slow, begun = renderer(LOOP + "{{ 1 * 1 }}"), threading.Event()

    def hang():
        begun.set()
        with pytest.raises(TemplateRefuses):
            slow.render(HELLO, NOW)

    thread = threading.Thread(target=hang)
    thread.start()
    assert begun.wait(10)
    assert renderer(CHATML).render(HELLO, NOW)
    assert thread.is_alive()
    thread.join(100)
    assert not thread.is_alive()


def test_no_process_outlives_its_template():
    template = Apart("{{ 1 * 1 }}")
    process = template._process
    del template
    gc.collect()
    assert process.poll() is not None


@pytest.mark.parametrize("template", ["{% if %}", "{{ x", "{% nothing %}", "{{ " + "(" * 100_000])
def test_what_is_no_template_is_said(template):
    with pytest.raises(TemplateBroken, match=r"\w"):
        renderer(template)


REAL = {
    "chatml": CHATML,
    "llama 2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
               "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
               "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
               "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
               "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
               "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
               "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama 3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
               "'<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
               "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "dates": "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}",
    "macros and tools": "{%- macro say(m) -%}{{ m.role }}: {{ m.content | trim | tojson }}{%- endmacro -%}{% for m in messages[::-1] %}{{ say(m) }}\n"
                        "{% endfor %}{% generation %}x{% endgeneration %}",
    "tools and thoughts": "{%- if tools %}{%- for tool in tools %}{{- tool | tojson(indent=4) }}{%- endfor %}{%- endif %}"
                          "{%- if note is defined %}{%- set tools = note %}{%- endif %}{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
                          "{%- set ns = namespace(last=messages|length - 1) %}{%- for m in messages[::-1] %}{%- set i = (messages|length - 1) - loop.index0 %}"
                          "{%- if m.role == 'user' %}{%- set ns.last = i %}{%- endif %}{%- endfor %}"
                          "{%- for m in messages %}{%- if m.content is string %}{%- set text = m.content %}{%- else %}{%- set text = '' %}"
                          "{%- for part in m.content %}{{- part.text | join(',') }}{%- endfor %}{%- endif %}"
                          "{%- if m.role == 'assistant' and '</t>' in text %}{%- set text = text.split('</t>')[-1].lstrip('\n') %}{%- endif %}"
                          "{{- '<' + m.role + '>' + text }}{%- if m.tool_calls %}{%- for call in m.tool_calls %}{{- call.arguments | tojson }}{%- endfor %}{%- endif %}"
                          "{%- if 'name' in m %}{{- m.name * 2 }}{%- elif loop.index0 > ns.last %}{{- '!' }}{%- endif %}{%- endfor %}"
                          "{%- if add_generation_prompt and (think is defined and think is false) %}{{- think * 3 }}{%- endif %}",
    "refuses": "{{ raise_exception('Only user and assistant') }}",
}  # fmt: skip


@pytest.mark.parametrize("template", REAL.values(), ids=REAL)
def test_both_ways_write_what_transformers_writes(template):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    def text(render):
        try:
            return render()
        except Exception as error:
            return f"refused: {error}"

    expected = text(lambda: _compile_jinja_template(template).render(**{**HELLO, "strftime_now": NOW.strftime}))
    assert text(lambda: renderer(template).render(HELLO, NOW)) == expected
    assert text(lambda: Apart(template).render(HELLO, NOW)) == expected
    assert Apart(template).description == renderer(template).description


def test_usual_templates_need_no_process():
    assert {name for name, template in REAL.items() if cost_if_plain(template) is not None} == {
        "chatml", "llama 2", "llama 3", "dates", "tools and thoughts", "refuses"}  # fmt: skip
    assert isinstance(renderer(CHATML), Plain)


PIECES = (
    "tools",
    "documents",
    "nothing",
    "m",
    "m.content",
    "m.role",
    "m.thought",
    "m['content']",
    "m['calls']",
    "bos_token",
    "messages",
    "m.items",
)
TESTS = st.recursive(
    st.one_of(
        st.sampled_from(PIECES),
        st.tuples(
            st.sampled_from(PIECES), st.sampled_from(["defined", "none", "string", "mapping", "iterable", "undefined"])
        ).map(" is ".join),
        st.tuples(st.sampled_from(["'role'", "'content'", "'calls'"]), st.sampled_from([" in m", " not in m"])).map(
            "".join
        ),
    ),
    lambda inner: st.one_of(
        inner.map("not ({})".format),
        st.tuples(inner, st.sampled_from([" and ", " or "]), inner).map(lambda x: f"({x[0]}){x[1]}({x[2]})"),
    ),
    max_leaves=4,
)
BODIES = st.recursive(
    st.sampled_from(
        ["a", "{{ m.content }}", "{% set tools = none %}", "{% set nothing = 1 %}", "{% set m = messages %}"]
    ),
    lambda inner: st.one_of(
        st.tuples(TESTS, inner, TESTS, inner, inner).map(
            lambda x: "{{% if {} %}}1{}{{% elif {} %}}2{}{{% else %}}3{}{{% endif %}}".format(*x)
        ),
        st.tuples(st.sampled_from(["tools", "m.calls", "nothing", "m.content"]), inner).map(
            lambda x: "{{% for x in {} %}}4{}{{% else %}}5{{% endfor %}}".format(*x)
        ),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=6,
)


@given(BODIES)
def test_what_cannot_be_reached_is_not_written(body):
    """The tree without it writes the same for a conversation of texts, unless the whole one refuses it."""
    environment = ImmutableSandboxedEnvironment()
    template = "{% for m in messages %}" + body + "{% endfor %}"
    whole = environment.from_string(template)
    try:
        expected = whole.render(**HELLO)
    except (TypeError, UndefinedError):
        return
    assert environment.from_string(reachable(environment.parse(template))).render(**HELLO) == expected


BLOCK = "{% set b %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}"


@pytest.mark.parametrize(
    ("template", "is_plain"),
    {
        BLOCK + "{{ b[:-1] }}{{ b.rstrip('x') if b.endswith('x') else b }}": True,
        BLOCK + "{% for m in messages %}{{ b }}{% endfor %}": False,
        BLOCK + "{% set c = b %}{% for m in messages %}{{ c }}{% endfor %}": False,
        "{% for m in messages %}" + "{% set b %}{{ m.content }}{% endset %}" + "{% endfor %}": False,
        BLOCK + "{{ b }}" * 20: False,
        BLOCK + "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = b %}{% endfor %}": False,
    }.items(),
)
def test_a_block_of_text_is_plain_where_it_is_used_a_few_times_outside_of_loops(template, is_plain):
    assert (cost_if_plain(template) is not None) is is_plain


def test_templates_that_are_exported_with_weights_need_no_process():
    tokenizer = tiny_tokenizer()
    policy = infer_policy(tokenizer, max_tokens=64, vocab_size=len(tokenizer), rule=LAYOUT_RULES["rewardserve"])
    exported = exported_template(tokenizer, policy, tokenizer)
    assert exported != CHATML
    assert isinstance(renderer(exported), Plain)


def test_a_template_of_very_many_names_is_not_looked_through():
    chain = "".join(f"{{% set a{i} = a{i + 1} %}}" for i in range(1200)) + "{% set a1200 = a + a %}"
    assert cost_if_plain(chain + "{% for m in messages %}{{ m['content'] }}{% endfor %}") is None


def test_a_conversation_beyond_reason_is_not_rendered_in_this_process(monkeypatch):
    template = renderer(CHATML)
    monkeypatch.setattr(jinja, "_MOST_CHARS_HERE", 10)
    here = []
    monkeypatch.setattr(template._here, "render", lambda *_: here.append(1))
    assert "hello" in template.render(HELLO, NOW)
    assert here == []
