"""Chat templates of the structure in which seven model families write tools, calls and results, with their control tokens.

`tests/trainers/test_tool_templates.py` has the templates themselves, from the package of TRL.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import tiny_tokenizer

_GENERATE = "{% if add_generation_prompt %}"


@dataclass(frozen=True)
class ToolFamily:
    """`controls`: its control tokens, the last of which ends a turn. `marks`: added tokens that are not special."""

    template: str
    controls: tuple[str, ...]
    marks: tuple[str, ...] = ()

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A small tokenizer with these tokens."""
        made = tiny_tokenizer(None, eos="<|endoftext|>")
        made.add_special_tokens({"additional_special_tokens": list(self.controls)})
        made.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in self.marks])
        made.eos_token = self.controls[-1]
        made.chat_template = self.template
        return made


FAMILIES = {
    # Qwen 2.5 and 3, Hermes: calls as JSON between marks, results in a user's turn.
    "qwen": ToolFamily(
        "{% if tools %}<|im_start|>system\n# Tools\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>"
        "<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}"
        "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}\n<tool_response>\n"
        "{{ m.content }}\n</tool_response>"
        "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
        "{% else %}<|im_start|>{{ m.role }}{% if m.content %}\n{{ m.content }}{% endif %}"
        "{% for call in m.tool_calls or [] %}\n<tool_call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": "
        "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        + _GENERATE
        + "<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    ),
    # Llama 3.1: one call a message, in place of its content; results are of the role ipython.
    "llama": ToolFamily(
        "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}"
        "{% if m.tool_calls | length != 1 %}{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"{{ m.tool_calls[0].function.name }}\", \"parameters\": "
        "{{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>"
        "{% else %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n"
        "{% if loop.first and tools %}Given are these functions:\n{% for tool in tools %}{{ tool | tojson(indent=4) }}\n\n"
        "{% endfor %}{% endif %}{{ m.content | trim }}<|eot_id|>{% endif %}{% endfor %}"
        + _GENERATE
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    # Mistral: every call needs an id of nine characters, which its result repeats.
    "mistral": ToolFamily(
        "{% for m in messages %}{% if m.role == 'user' %}"
        "{% if tools and loop.index0 == 0 %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
        "[INST] {{ m.content }}[/INST]"
        "{% elif m.tool_calls is defined and m.tool_calls is not none %}[TOOL_CALLS] [{% for call in m.tool_calls %}"
        "{% if call.id is not defined or call.id | length != 9 %}"
        "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
        "{{ call.function | tojson }}, \"id\": \"{{ call.id }}\"{{ '' if loop.last else ', ' }}{% endfor %}]</s>"
        "{% elif m.role == 'tool' %}[TOOL_RESULTS] {\"content\": {{ m.content }}, \"call_id\": \"{{ m.tool_call_id }}\"}"
        "[/TOOL_RESULTS]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        (
            "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
            "</s>",
        ),
    ),
    # DeepSeek V3: calls are written only where the content is null.
    "deepseek": ToolFamily(
        "{% if tools %}## Tools{% for tool in tools %}\n{{ tool.function | tojson }}{% endfor %}\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
        "{% elif m.role == 'tool' %}<|tool_output_begin|>{{ m.content }}<|tool_output_end|>"
        "{% elif m.content is none %}<|Assistant|><|tool_calls_begin|>{% for call in m.tool_calls %}"
        "<|tool_call_begin|>function<|tool_sep|>{{ call.function.name }}\n```json\n{{ call.function.arguments | tojson }}\n```"
        "<|tool_call_end|>{% endfor %}<|tool_calls_end|><|end_of_sentence|>"
        "{% else %}{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}<|Assistant|>{% endif %}"
        "{{ m.content }}<|end_of_sentence|>{% endif %}{% endfor %}"
        + _GENERATE
        + "{% if messages[-1].role != 'tool' %}<|Assistant|>{% endif %}{% endif %}",
        (
            "<|User|>", "<|Assistant|>", "<|tool_calls_begin|>", "<|tool_calls_end|>", "<|tool_call_begin|>", "<|tool_call_end|>",
            "<|tool_sep|>", "<|tool_output_begin|>", "<|tool_output_end|>", "<|end_of_sentence|>",
        ),
    ),
    # Granite 3: a turn of its own for the tools, calls after a mark; it fails on a content of null.
    "granite": ToolFamily(
        "{% if tools %}<|start_of_role|>available_tools<|end_of_role|>{{ tools | tojson(indent=4) }}<|end_of_text|>\n{% endif %}"
        "{% for m in messages %}<|start_of_role|>{{ 'tool_response' if m.role == 'tool' else m.role }}<|end_of_role|>"
        "{% if m.tool_calls %}<|tool_call|>{{ m.tool_calls | map(attribute='function') | list | tojson }}{% endif %}"
        "{{ '' + m.content }}<|end_of_text|>\n{% endfor %}" + _GENERATE + "<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>", "<|end_of_text|>"),
    ),
    # GLM 4.5: an argument a line, between marks.
    "glm": ToolFamily(
        "{% if tools %}<|system|>\n<tools>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}<|observation|>\n<tool_response>\n{{ m.content }}\n</tool_response>"
        "{% else %}<|{{ m.role }}|>\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}\n"
        "<tool_call>{{ call.function.name }}\n{% for key, value in call.function.arguments.items() %}<arg_key>{{ key }}</arg_key>\n"
        "<arg_value>{{ value if value is string else value | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
        "{% endif %}{% if m.role == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}" + _GENERATE + "<|assistant|>\n{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    # LFM2 and Llama 4: calls as Python.
    "pythonic": ToolFamily(
        "{% if tools %}<|im_start|>system\nList of tools: [{% for tool in tools %}{{ tool | tojson }}{% endfor %}]<|im_end|>\n"
        "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% if m.tool_calls %}<|tool_call_start|>["
        "{% for call in m.tool_calls %}{{ call.function.name }}({% for key, value in call.function.arguments.items() %}{{ key }}="
        "{{ value | tojson }}{{ '' if loop.last else ', ' }}{% endfor %}){{ '' if loop.last else ', ' }}{% endfor %}]"
        "<|tool_call_end|>{% endif %}<|im_end|>\n{% endfor %}" + _GENERATE + "<|im_start|>assistant\n{% endif %}",
        ("<|im_start|>", "<|tool_call_start|>", "<|tool_call_end|>", "<|im_end|>"),
    ),
}  # fmt: skip
