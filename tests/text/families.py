"""Chat templates with the tool markup of the known families of models, cut to what tools need; wording of our own."""

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from tests.text.conftest import byte_level_backend, wrap
from tgi_local.text import tool_formats
from tgi_local.text.tokenizer import TextTokenizer
from tgi_local.text.tool_formats import ToolFormat

_TURN = "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
_END = "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

HERMES = (
    "{%- if tools %}{{ '<|im_start|>system\\n<tools>' }}{% for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}"
    "{{ '\\n</tools>\\nCall as <tool_call>\\n{...}\\n</tool_call><|im_end|>\\n' }}{% endif %}"
    "{%- for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' + m.content }}"
    '{%- for call in m.tool_calls or [] %}{{ \'\\n<tool_call>\\n{"name": "\' + call.function.name + \'", "arguments": \''
    " + (call.function.arguments | tojson) + '}\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}"
    "{%- elif m.role == 'tool' %}{{ '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}"
    "{%- else %}" + _TURN + "{% endif %}{% endfor %}" + _END
)
QWEN_CODER = (
    "{%- if tools %}{{ '<|im_start|>system\\n' }}{% for tool in tools %}{{ '<function><name>' + tool.function.name + '</name>' }}"
    "{% endfor %}{{ 'Call as <tool_call>\\n<function=name>\\n<parameter=key>\\nvalue\\n</parameter>\\n</function>\\n"
    "</tool_call><|im_end|>\\n' }}{% endif %}{%- for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}"
    "{{ '<|im_start|>assistant\\n' + m.content }}{%- for call in m.tool_calls %}"
    "{{ '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}{%- for key, value in call.function.arguments.items() %}"
    "{{ '<parameter=' + key + '>\\n' + (value if value is string else value | tojson) + '\\n</parameter>\\n' }}{% endfor %}"
    "{{ '</function>\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% else %}"
    + _TURN
    + "{% endif %}{% endfor %}"
    + _END
)
GLM = (
    "{%- if tools %}{{ '<|system|>\\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}"
    "{{ '<tool_call>{name}\\n<arg_key>{key}</arg_key>\\n<arg_value>{value}</arg_value>\\n</tool_call>' }}{% endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{%- for call in m.tool_calls or [] %}"
    "{{ '\\n<tool_call>' + call.function.name }}{% for key, value in call.function.arguments.items() %}"
    "{{ '\\n<arg_key>' + key + '</arg_key>\\n<arg_value>' + (value if value is string else value | tojson) + '</arg_value>' }}"
    "{% endfor %}{{ '\\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}" + _END
)
_MISTRAL = (
    "{%- for m in messages %}{% if m.role == 'user' %}{% if tools and m == (messages | selectattr('role', 'equalto', 'user') | list)[-1] %}{{ '[AVAILABLE_TOOLS]' + tools | tojson }}{% endif %}"
    "{{ '[INST] ' + m.content + '[/INST]' }}{% elif m.tool_calls %}{{ '[TOOL_CALLS]SPACE[' }}{% for call in m.tool_calls %}"
    "{%- if not call.id is defined or call.id|length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}{{ ', ' if not loop.last }}{% endfor %}{{ ']</s>' }}"
    "{% elif m.role == 'tool' %}{% if not m.tool_call_id is defined or m.tool_call_id|length != 9 %}"
    "{{ raise_exception('ids have nine characters') }}{% endif %}"
    "{{ '[TOOL_RESULTS]{\"content\": ' + m.content + ', \"call_id\": \"' + m.tool_call_id + '\"}' }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
MISTRAL = _MISTRAL.replace("SPACE", " ")
MISTRAL_TEKKEN = _MISTRAL.replace("SPACE", "")
MISTRAL_NAMED = (
    "{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson }}{% endif %}{%- for m in messages %}{{ '[' + m.role + ']' + m.content }}"
    "{%- for call in m.tool_calls or [] %}{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' + call.function.arguments | tojson }}"
    "{% endfor %}{% endfor %}"
)
GRANITE = (
    "{%- if tools %}{{ '<|start_of_role|>available_tools' + tools | tojson }}"
    "{{ 'Write <|tool_call|> and then a JSON list of the tools used.' }}{% endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}{% if m.tool_calls %}"
    "{{ '<|tool_call|>' + m.tool_calls | map(attribute='function') | list | tojson }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    + _END
)
PHI = (  # tools are a string in the system message; calls are only in the vocabulary
    "{%- for m in messages %}{% if m.role == 'system' and 'tools' in m and m['tools'] is not none %}"
    "{{ '<|system|>' + m.content + '<|tool|>' + m['tools'] + '<|/tool|><|end|>' }}{% else %}"
    "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
)
_DEEPSEEK = (  # arguments are joined as text
    "{%- if tools %}{{ tools | tojson }}{% endif %}{%- for m in messages %}{% if m.tool_calls %}{{ '<｜tool▁calls▁begin｜>' }}"
    "{%- for call in m.tool_calls %}CALL{% endfor %}{{ '<｜tool▁calls▁end｜>' }}{% else %}{{ m.role + ': ' + m.content }}{% endif %}{% endfor %}"
)
DEEPSEEK = _DEEPSEEK.replace(
    "CALL",
    "{{ '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\\n```json\\n' + call.function.arguments"
    " + '\\n```<｜tool▁call▁end｜>' }}",
)
DEEPSEEK_V31 = _DEEPSEEK.replace(
    "CALL",
    "{{ '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + call.function.arguments + '<｜tool▁call▁end｜>' }}",
)
LLAMA = (
    '{%- if tools %}{{ \'Respond as {"name": function name, "parameters": arguments}\' }}'
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}{%- for m in messages %}{% if m.tool_calls %}"
    "{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}{%- set call = m.tool_calls[0].function %}"
    "{{ '<|im_start|>assistant\\n{\"name\": \"' + call.name + '\", \"parameters\": ' + call.arguments | tojson + '}<|im_end|>\\n' }}"
    "{% elif m.role == 'tool' %}{{ '<|im_start|>ipython\\n' + m.content | tojson + '<|im_end|>\\n' }}"
    "{% else %}" + _TURN + "{% endif %}{% endfor %}" + _END
)
NO_TOOLS = "{%- for m in messages %}" + _TURN + "{% endfor %}" + _END
NO_SYSTEM = (
    "{%- for m in messages %}{% if m.role not in ['user', 'assistant'] or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('only user and assistant in turn') }}{% endif %}" + _TURN + "{% endfor %}" + _END
)


@dataclass(frozen=True)
class Family:
    """A template, the format its model writes, and two calls of it as the model would write them."""

    template: str
    format: ToolFormat
    calls: str

    def tokenizer(self, *, special: bool | None = True) -> TextTokenizer:
        """`special`: whether the format's own tokens are; None where the vocabulary does not have them."""
        backend = byte_level_backend()
        tokens = [token for token in (*self.format.tokens, "<think>", "</think>") if backend.token_to_id(token) is None]
        if special is not None:
            backend.add_tokens([AddedToken(token, special=special) for token in tokens])
        return wrap(backend, self.template, eos_token="<|im_end|>")


_A, _B = '{"city": "Bonn", "days": 3}', "{}"
_LIST = '[{"name": "get_weather", "arguments": ' + _A + '}, {"name": "stop", "arguments": {}}]'
_TAGGED = (
    '<tool_call>\n{"name": "get_weather", "arguments": ' + _A + "}\n</tool_call>\n"
    '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
)
_CODER = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nBonn\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>\n<tool_call>\n<function=stop>\n</function>\n</tool_call>"
)
_GLM = (
    "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Bonn</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>3</arg_value>\n</tool_call>\n<tool_call>stop\n</tool_call>"
)
FAMILIES = {
    "hermes": Family(HERMES, tool_formats.HERMES, _TAGGED),
    "qwen-coder": Family(QWEN_CODER, tool_formats.QWEN_CODER, _CODER),
    "glm": Family(GLM, tool_formats.GLM, _GLM),
    "mistral": Family(MISTRAL, tool_formats.MISTRAL, f"[TOOL_CALLS] {_LIST}"),
    "mistral-tekken": Family(MISTRAL_TEKKEN, tool_formats.MISTRAL_TEKKEN, f"[TOOL_CALLS]{_LIST}"),
    "mistral-named": Family(
        MISTRAL_NAMED, tool_formats.MISTRAL_NAMED, f"[TOOL_CALLS]get_weather[ARGS]{_A}[TOOL_CALLS]stop[ARGS]{_B}"
    ),
    "granite": Family(GRANITE, tool_formats.GRANITE, f"<|tool_call|>{_LIST}"),
    "phi": Family(PHI, tool_formats.PHI, f"<|tool_call|>{_LIST}<|/tool_call|>"),
    "deepseek": Family(
        DEEPSEEK,
        tool_formats.DEEPSEEK,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        + _A
        + "\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>stop\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>",
    ),
    "deepseek-v3.1": Family(
        DEEPSEEK_V31,
        tool_formats.DEEPSEEK_V31,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>" + _A + "<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>stop<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "llama": Family(
        LLAMA,
        tool_formats.LLAMA,
        '{"name": "get_weather", "parameters": ' + _A + '}; {"name": "stop", "parameters": {}}',
    ),
    "no-tools": Family(NO_TOOLS, tool_formats.HERMES, _TAGGED),
    "no-system": Family(NO_SYSTEM, tool_formats.HERMES, _TAGGED),
}

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["c", "f"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["city"],
    "$defs": {"place": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
}
