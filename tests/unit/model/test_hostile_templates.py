# ruff: noqa: E501
"""A chat template that takes for ever, or all memory, harms nothing but itself; any other writes what transformers writes."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime
from time import thread_time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rewardserve.model.checkpoint.exporting import exported_template
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.templates import jinja_process
from rewardserve.model.templates.jinja_budget import BudgetedTemplate, build_renderer
from rewardserve.model.templates.jinja_process import RenderingProcess, TemplateBroken, TemplateRefuses
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.support.tiny import CHATML, tiny_tokenizer

pytestmark = pytest.mark.slow

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
    monkeypatch.setattr(jinja_process, "MAX_CPU_S", 1)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_takes_too_much_is_refused_and_ends(template):
    with pytest.raises((TemplateBroken, TemplateRefuses)):
        RenderingProcess(template).render(HELLO, NOW)


@pytest.fixture
def n_processes(monkeypatch):
    """A list with an item for each rendering that was left to a process; none is started."""
    asked = []
    monkeypatch.setattr(BudgetedTemplate, "_render_in_process", lambda *_: asked.append(1) or "left to a process")
    monkeypatch.setattr(RenderingProcess, "of", lambda _: pytest.fail("left to a process when it was read"))
    return asked


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_it_takes_little_of_this_process(template, monkeypatch):
    """Work is counted by the budget, so a rendering here ends after a known number of steps, whatever the template does."""
    monkeypatch.setattr(RenderingProcess, "of", lambda _: pytest.fail("not needed before it is rendered"))
    try:
        read = BudgetedTemplate(template)
    except Exception:
        return  # the process reports the error
    left = []
    monkeypatch.setattr(BudgetedTemplate, "_render_in_process", lambda *_: left.append(1) or "")
    before = thread_time()
    with suppress(TemplateRefuses):
        read.render(HELLO, NOW)
        assert left
    assert thread_time() - before < 20, "some 0.4 s"


@pytest.mark.parametrize("condition", ["tools", "false", "messages|length > 5", "nothing is defined"])
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_branch_that_is_not_entered_costs_nothing_not_even_when_compiled(template, condition, n_processes):
    if "macro" in template or template == HOSTILE["loops over messages"]:
        return  # Python compiles no more than 20 loops within each other
    text = "{% if " + condition + " %}" + template + "{% endif %}{{ messages[0].content }}"
    before = thread_time()
    assert BudgetedTemplate(text).render(HELLO, NOW) == "hello"
    assert thread_time() - before < 5, "some milliseconds"
    assert not n_processes


@pytest.mark.parametrize("name", ["evil", "eos_token", "tools_token", "documents"])
def test_whatever_a_special_token_is_called_its_text_is_paid_for(name, n_processes):
    text = "{% if " + name + " %}" + HOSTILE["nested loops"] + "{% endif %}{{ messages[0].content }}"
    assert BudgetedTemplate(text).render({**HELLO, name: "<e>"}, NOW) == "left to a process"


@pytest.mark.parametrize(
    "expression",
    [
        "'%99999999d' is odd", "'%99999999d' is even", "'%99999999d' is divisibleby(2)", "messages[0].content.zfill(99999999)",
        "'a' | replace('', 'a' * 99999999)", "'a'.replace('', messages[0].content.rjust(9999999))", "[1] * 99999999", "2 ** 99999999",
        "range(99999999)", "messages | map('center', 99999999) | list", "messages | sum(attribute='content', start='')",
        "messages | tojson(indent=99999999)", "'{:>99999999}'.format(1)", "lipsum(n=99999999)", "dict(a=[1] * 99999999)",
        "'a' | indent(99999999)", "(99999999 | string) | batch(99999999) | list", "'a'.expandtabs(99999999)", "[[[messages]]]",
        "99999999.9 | round(99999999)", "['a', 'b'] | join('a' * 99999999)",
    ],
)  # fmt: skip
def test_no_single_operation_is_done_here_at_any_price(expression, n_processes):
    read = BudgetedTemplate("{% if " + expression + " %}a{% endif %}" + "{% set x = " + expression + " %}{{ x }}")
    before = thread_time()
    with suppress(TemplateRefuses):  # by a bound of the sandbox
        assert read.render(HELLO, NOW) == "left to a process"
    assert thread_time() - before < 5, "some milliseconds"


def test_one_that_is_tame_until_a_word_comes_is_refused_for_that_conversation_alone():
    template = build_renderer("{% if messages[0].content == 'now' %}" + LOOP + "{% endif %}{{ messages[0].content }}")
    assert template.render(HELLO, NOW) == "hello"
    with pytest.raises(TemplateRefuses, match="too much CPU time"):
        template.render({**HELLO, "messages": [{"role": "user", "content": "now"}]}, NOW)
    assert template.render(HELLO, NOW) == "hello", "started again"


def test_another_template_is_rendered_meanwhile():
    slow, begun = build_renderer(LOOP + "{{ 1 * 1 }}"), threading.Event()

    def hang():
        begun.set()
        with pytest.raises(TemplateRefuses):
            slow.render(HELLO, NOW)

    thread = threading.Thread(target=hang)
    thread.start()
    assert begun.wait(10)
    assert build_renderer(CHATML).render(HELLO, NOW)
    assert thread.is_alive()
    thread.join(100)
    assert not thread.is_alive()


def test_no_process_outlives_its_template():
    template = RenderingProcess("{{ 1 * 1 }}")
    process = template._process
    del template
    gc.collect()
    assert process.poll() is not None


@pytest.mark.parametrize("template", ["{% if %}", "{{ x", "{% nothing %}", "{{ " + "(" * 100_000])
def test_what_is_no_template_is_said(template):
    with pytest.raises(TemplateBroken, match=r"\w"):
        build_renderer(template)


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
    assert text(lambda: build_renderer(template).render(HELLO, NOW)) == expected
    in_process = RenderingProcess(template)
    assert text(lambda: in_process.render(HELLO, NOW)) == expected
    assert in_process.description == build_renderer(template).description


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


def test_templates_that_are_exported_with_weights_need_no_process():
    tokenizer = tiny_tokenizer()
    policy = infer_policy(tokenizer, max_tokens=64, vocab_size=len(tokenizer), rule=LAYOUT_RULES["rewardserve"])
    exported = exported_template(tokenizer, policy, tokenizer)
    assert exported != CHATML
    assert isinstance(build_renderer(exported), BudgetedTemplate)


def test_usual_templates_need_no_process(n_processes):
    for name, template in REAL.items():
        read = build_renderer(template)
        with suppress(TemplateRefuses):
            read.render(HELLO, NOW)
        assert not n_processes, name


EXPRESSIONS = st.recursive(
    st.sampled_from(
        [
            "m.content",
            "m.role",
            "m['content']",
            "nothing",
            "bos_token",
            "ns.x",
            "loop.index",
            "loop.length",
            "1",
            "'a b'",
            "none",
            "m",
            "messages",
            "m.content | tojson",
            "ns.l",
            "messages | selectattr('role', 'eq', 'user') | list",
            "m.items()",
            "[m, 'a']",
        ]
    ),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "~", "-", "*", "%", "==", "in", "and", "or", "<"]), inner).map(
            lambda x: f"({x[0]} {x[1]} {x[2]})"
        ),
        st.tuples(
            inner,
            st.sampled_from(
                [
                    "| trim",
                    "| length",
                    "| upper",
                    "| first",
                    "| last",
                    "| list",
                    "| join('-')",
                    "| replace('l', 'xy')",
                    "| string",
                    "| safe",
                    "| default('d')",
                    "| int",
                    ".strip()",
                    ".split(' ')",
                    ".split('l')[-1]",
                    ".startswith('h')",
                    ".get('content')",
                    "[1:]",
                    "[::-1]",
                    "[0]",
                    ".title()",
                    "| map(attribute='role') | list",
                ]
            ),
        ).map(lambda x: f"({x[0]}){x[1]}"),
        st.tuples(inner, inner).map(lambda x: f"[{x[0]}, {x[1]}]"),
        st.tuples(inner, st.sampled_from(["defined", "none", "string", "mapping", "iterable", "odd", "sequence"])).map(
            lambda x: f"({x[0]} is {x[1]})"
        ),
    ),
    max_leaves=5,
)
BODIES = st.recursive(
    st.one_of(
        EXPRESSIONS.map("{{{{ {} }}}}".format),
        EXPRESSIONS.map("{{% set ns.x = {} %}}".format),
        EXPRESSIONS.map("{{% set ns.l = ns.l + [{}] %}}".format),
    ),
    lambda inner: st.one_of(
        st.tuples(EXPRESSIONS, inner, inner).map(lambda x: f"{{% if {x[0]} %}}1{x[1]}{{% else %}}2{x[2]}{{% endif %}}"),
        st.tuples(EXPRESSIONS, inner).map(lambda x: f"{{% for x in {x[0]} %}}4{x[1]}{{% else %}}5{{% endfor %}}"),
        inner.map("{{% set b %}}{}{{% endset %}}{{{{ b }}}}".format),
        inner.map("{{% macro f(m) %}}{}{{% endmacro %}}{{{{ f(m) }}}}".format),
        st.tuples(inner, inner).map("".join),
    ),
    max_leaves=6,
)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # of Python, of `(1)[1:]` in the compiled template, by its line
@given(BODIES)
@example("{{ [m.content, (1)[1:]] }}")
def test_what_is_rendered_here_is_what_transformers_renders(body):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    template = "{% set ns = namespace(x='', l=[]) %}{% for m in messages %}" + body + "{% endfor %}"

    class Left(Exception):
        pass

    def render_here():
        read = BudgetedTemplate(template)
        read._render_in_process = lambda *_: (_ for _ in ()).throw(Left)
        return read.render(HELLO, NOW)

    def outcome(render):
        try:
            return render()
        except Left:
            raise
        except Exception as error:
            return f"refused: {re.sub(r'line [0-9]+', 'line', str(error))}"  # of the compiled code

    try:
        here = outcome(render_here)
    except Left:
        return
    assert here == outcome(lambda: _compile_jinja_template(template).render(**HELLO))


def test_a_conversation_beyond_the_budget_is_rendered_by_one_process_each_time(monkeypatch):
    template = build_renderer(CHATML)
    monkeypatch.setattr(template, "_budget", 10)
    assert "hello" in template.render(HELLO, NOW)
    process = template._process._process
    assert "hello" in template.render(HELLO, NOW)
    assert template._process._process is process
    assert process.poll() is None


@pytest.mark.parametrize(("n_messages", "n_chars"), [(2, 1_000_000), (43, 500), (100, 2_000), (1_000, 20)])
def test_long_conversations_need_no_process(n_messages, n_chars, n_processes):
    roles = ("user", "assistant") * (n_messages // 2 + 1)
    messages = [{"role": role, "content": "a" * n_chars} for role in roles[:n_messages]]
    for name in ("chatml", "llama 3"):
        assert len(build_renderer(REAL[name]).render({**HELLO, "messages": messages}, NOW)) > n_messages * n_chars


def test_a_process_that_cannot_be_started_is_no_fault_of_the_template(monkeypatch):
    monkeypatch.setattr(jinja_process.sys, "executable", "/bin/false")
    with pytest.raises(ChildProcessError, match="cannot be started"):
        RenderingProcess("{{ 1 * 1 }}")
    monkeypatch.setattr(jinja_process.sys, "executable", "/nothing/here")
    with pytest.raises(FileNotFoundError):
        RenderingProcess("{{ 1 * 1 }}")


FORKED = """
import os, sys
from datetime import datetime
from rewardserve.model.templates.jinja_process import RenderingProcess

process, now = RenderingProcess("{{ who }} {{ n }}"), datetime(2026, 1, 1)

def render(who):
    said = [process.render({"who": who, "n": n}, now) for n in range(200)]
    return said == [f"{who} {n}" for n in range(200)]

children = []
for i in range(3):
    pid = os.fork()
    if pid == 0:
        os._exit(not render(f"child {i}"))
    children.append(pid)
right = render("parent")
sys.exit(not right or any(os.waitpid(pid, 0)[1] for pid in children) or not render("parent again"))
"""


def test_a_forked_process_renders_in_a_process_of_its_own():
    """As a DataLoader and a server of forked workers do. With shared pipes the replies reach the wrong one."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
