"""Chat templates with the tool markup of the known families of models, cut to what tools need; wording of our own."""

from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken

from tests.text.conftest import byte_level_backend, wrap
from tgi_local.text import reasoning, tool_formats
from tgi_local.text.reasoning import THINK, ThoughtFormat
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

_LISTED = (  # tools as a list, and calls in the assistant's text
    "{%- if tools %}{{ '<|im_start|>system\\n' + tools | tojson + 'HINT<|im_end|>\\n' }}{% endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}THOUGHT{{ m.content }}{% if m.tool_calls %}CALLS{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}" + _END
)
_THOUGHT = "{%- if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
_EACH = "{%- for call in m.tool_calls %}ONE{% endfor %}"
_JSON_LIST = "{{ m.tool_calls | map(attribute='function') | list | tojson }}"


def _listed(calls: str, hint: str = "", thought: str = _THOUGHT) -> str:
    return _LISTED.replace("CALLS", calls).replace("HINT", hint).replace("THOUGHT", thought)


def _each(one: str, between: str = "") -> str:
    return _EACH.replace("ONE", one + ("{{ BETWEEN if not loop.last }}".replace("BETWEEN", between) if between else ""))


_VALUE = "(value if value is string else value | tojson)"
_PAIRS = "{%- for key, value in call.function.arguments.items() %}PAIR{% endfor %}"
SEED = _listed(
    _each(
        "{{ '\\n<seed:tool_call>\\n<function=' + call.function.name + '>\\n' }}"
        + _PAIRS.replace("PAIR", "{{ '<parameter=' + key + '>' + " + _VALUE + " + '</parameter>\\n' }}")
        + "{{ '</function>\\n</seed:tool_call>' }}"
    )
)
MINIMAX = _listed(
    "{{ '\\n<minimax:tool_call>\\n' }}"
    + _each(
        "{{ '<invoke name=\"' + call.function.name + '\">\\n' }}"
        + _PAIRS.replace("PAIR", "{{ '<parameter name=\"' + key + '\">' + " + _VALUE + " + '</parameter>\\n' }}")
        + "{{ '</invoke>\\n' }}"
    )
    + "{{ '</minimax:tool_call>' }}"
)
GLM_47 = _listed(
    _each(
        "{{ '<tool_call>' + call.function.name }}"
        + _PAIRS.replace("PAIR", "{{ '<arg_key>' + key + '</arg_key><arg_value>' + " + _VALUE + " + '</arg_value>' }}")
        + "{{ '</tool_call>' }}"
    )
)
_GEMMA = (
    "{%- macro arg(v) %}{% if v is string %}{{ 'Q' + v + 'Q' }}{% elif v is boolean %}{{ v | lower }}{% elif v is mapping %}"
    "{{ '{' }}{% for k, x in v.items() %}{{ k + ':' }}{{ arg(x) }}{{ ',' if not loop.last }}{% endfor %}{{ '}' }}"
    "{% elif v is sequence %}{{ '[' }}{% for x in v %}{{ arg(x) }}{{ ',' if not loop.last }}{% endfor %}{{ ']' }}"
    "{% else %}{{ v }}{% endif %}{% endmacro %}"
    + _listed(
        _each(
            "{{ 'BEGINcall:' + call.function.name + '{' }}{%- for key, value in call.function.arguments | dictsort %}{{ key + ':' }}"
            "{{ arg(value) }}{{ ',' if not loop.last }}{% endfor %}{{ '}END' }}"
        )
    )
)
FUNCTION_GEMMA = (
    _GEMMA.replace("'Q'", "'<escape>'").replace("'Q", "'<escape>").replace("BEGIN", "<start_function_call>")
).replace("END'", "<end_function_call>'")
GEMMA4 = _GEMMA.replace("'Q'", "'<|\"|>'").replace("BEGIN", "<|tool_call>").replace("END'", "<tool_call|>'")
_PYTHON = _each(
    "{{ call.function.name + '(' }}{%- for key, value in call.function.arguments.items() %}{{ key + '=' }}"
    "{{ (\"'\" + value + \"'\") if value is string else value }}{{ ', ' if not loop.last }}{% endfor %}{{ ')' }}",
    "GLUE",
)
PYTHONIC = _listed(
    "{{ '[' }}" + _PYTHON.replace("GLUE", "', '") + "{{ ']' }}",
    hint="Write [func_name1(params_name1=params_value1), func_name2()]",
)
LFM2 = _listed("{{ '<|tool_call_start|>[' }}" + _PYTHON.replace("GLUE", "', '") + "{{ ']<|tool_call_end|>' }}")
OLMO = _listed("{{ '<function_calls>\\n' }}" + _PYTHON.replace("GLUE", "'\\n'") + "{{ '\\n</function_calls>' }}")
NEMOTRON = _listed("{{ '<TOOLCALL>' }}" + _JSON_LIST + "{{ '</TOOLCALL>' }}")
TOOL_CALLS = _listed("{{ '<tool_calls>' }}" + _JSON_LIST + "{{ '</tool_calls>' }}")
FUNCTOOLS = _listed("{{ 'functools[' }}{{ (m.tool_calls | map(attribute='function') | list | tojson)[1:] }}")
COMMAND_R7B = _listed(
    "{{ '<|START_ACTION|>[\\n' }}"
    + _each(
        '{{ \'    {"tool_call_id": "\' ~ loop.index0 ~ \'", "tool_name": "\' + call.function.name + \'", "parameters": \''
        " + call.function.arguments | tojson + '}' }}",
        "',\\n'",
    )
    + "{{ '\\n]<|END_ACTION|>' }}",
    thought="{%- if m.reasoning_content %}{{ '<|START_THINKING|>' + m.reasoning_content + '<|END_THINKING|>' }}{% endif %}",
)
COMMAND_R = _listed(
    "{{ 'Action: ```json\\n[\\n' }}"
    + _each(
        '{{ \'    {\\n        "tool_name": "\' + call.function.name + \'",\\n        "parameters": \''
        " + call.function.arguments | tojson + '\\n    }' }}",
        "',\\n'",
    )
    + "{{ '\\n]```' }}"
)
KIMI = _listed(  # which knows a call by its id alone
    "{{ '<|tool_calls_section_begin|>' }}"
    + _each(
        "{{ '<|tool_call_begin|>' + call.id + '<|tool_call_argument_begin|>' + call.function.arguments | tojson + '<|tool_call_end|>' }}"
    )
    + "{{ '<|tool_calls_section_end|>' }}"
).replace(
    "{{ m.content }}",
    "{{ (m.tool_call_id + ': ' if m.role == 'tool' and m.tool_call_id is defined else '') + m.content }}",
)
HARMONY = (  # one call in a message, which says either what was thought or a text
    "{%- if tools %}{{ '<|start|>developer<|message|>namespace functions {' }}{% for tool in tools %}"
    "{{ tool.function.name + tool.function.parameters | tojson }}{% endfor %}{{ '}<|end|>' }}{% endif %}"
    "{%- for m in messages %}{% if m.tool_calls %}{% if m.content and m.thinking %}{{ raise_exception('not both') }}{% endif %}"
    "{%- if m.content or m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + (m.thinking or m.content) + '<|end|>' }}{% endif %}"
    "{%- set call = m.tool_calls[0].function %}{{ '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>'"
    " + call.arguments | tojson + '<|call|>' }}{% elif m.role == 'tool' %}"
    "{{ '<|start|>functions.' + m.name + ' to=assistant<|channel|>commentary<|message|>' + m.content | tojson + '<|end|>' }}"
    "{% elif m.role == 'assistant' %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
FUNCTION_TAGS = _listed(
    _each("{{ '<function=' + call.function.name + '>' + call.function.arguments | tojson + '</function>' }}", "'\\n'")
)
MISTRAL_WITH_ID = MISTRAL_NAMED.replace(
    "call.function.name + '[ARGS]'", "call.function.name + '[CALL_ID]' + call.id + '[ARGS]'"
).replace("{%- if tools %}", "{#- id|length != 9 #}{%- if tools %}")
NO_TOOLS = "{%- for m in messages %}" + _TURN + "{% endfor %}" + _END
NO_SYSTEM = (
    "{%- for m in messages %}{% if m.role not in ['user', 'assistant'] or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('only user and assistant in turn') }}{% endif %}" + _TURN + "{% endfor %}" + _END
)


@dataclass(frozen=True)
class Family:
    """A template, the format its model writes, and two calls of it as the model would write them.

    `said` is how it writes a text before calls, and `answered` a text alone.
    """

    template: str
    format: ToolFormat
    calls: str
    thoughts: ThoughtFormat = THINK
    said: str = "{}"
    answered: str = "{}"

    def says(self, text: str) -> str:
        return self.said.replace("{}", text)

    def answers(self, text: str) -> str:
        return self.answered.replace("{}", text)

    def tokenizer(self, *, special: bool | None = True) -> TextTokenizer:
        """`special`: whether the format's own tokens are; None where the vocabulary does not have them."""
        backend = byte_level_backend()
        tokens = [token for token in (*self.format.tokens, *self.thoughts.tokens) if backend.token_to_id(token) is None]
        if special is not None:
            backend.add_tokens([AddedToken(token, special=special) for token in dict.fromkeys(tokens)])
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
    "seed": Family(
        SEED,
        tool_formats.SEED,
        "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Bonn</parameter>\n<parameter=days>3</parameter>\n"
        "</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=stop>\n</function>\n</seed:tool_call>",
    ),
    "minimax": Family(
        MINIMAX,
        tool_formats.MINIMAX,
        '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Bonn</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n<invoke name="stop">\n</invoke>\n</minimax:tool_call>',
    ),
    "glm-4.7": Family(
        GLM_47,
        tool_formats.GLM_47,
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Bonn</arg_value><arg_key>days</arg_key><arg_value>3</arg_value>"
        "</tool_call><tool_call>stop</tool_call>",
    ),
    "function-gemma": Family(
        FUNCTION_GEMMA,
        tool_formats.FUNCTION_GEMMA,
        "<start_function_call>call:get_weather{city:<escape>Bonn<escape>,days:3}<end_function_call>"
        "<start_function_call>call:stop{}<end_function_call>",
    ),
    "gemma-4": Family(
        GEMMA4,
        tool_formats.GEMMA4,
        '<|tool_call>call:get_weather{city:<|"|>Bonn<|"|>,days:3}<tool_call|><|tool_call>call:stop{}<tool_call|>',
    ),
    "pythonic": Family(PYTHONIC, tool_formats.PYTHONIC, "[get_weather(city='Bonn', days=3), stop()]"),
    "lfm2": Family(
        LFM2,
        tool_formats.LFM2,
        "<|tool_call_start|>[get_weather(city='Bonn', days=3), stop()]<|tool_call_end|>",
    ),
    "olmo": Family(
        OLMO, tool_formats.OLMO, "<function_calls>\nget_weather(city='Bonn', days=3)\nstop()\n</function_calls>"
    ),
    "nemotron": Family(NEMOTRON, tool_formats.NEMOTRON, f"<TOOLCALL>{_LIST}</TOOLCALL>"),
    "hunyuan": Family(TOOL_CALLS, tool_formats.TOOL_CALLS, f"<tool_calls>{_LIST}</tool_calls>"),
    "functools": Family(FUNCTOOLS, tool_formats.FUNCTOOLS, f"functools{_LIST}"),
    "command-r7b": Family(
        COMMAND_R7B,
        tool_formats.COMMAND_R7B,
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
        + _A
        + '},\n    {"tool_call_id": "1", "tool_name": "stop", "parameters": {}}\n]<|END_ACTION|>',
    ),
    "command-r": Family(
        COMMAND_R,
        tool_formats.COMMAND_R,
        'Action: ```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": '
        + _A
        + '\n    },\n    {\n        "tool_name": "stop",\n        "parameters": {}\n    }\n]```',
    ),
    "kimi": Family(
        KIMI,
        tool_formats.KIMI,
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        + _A
        + "<|tool_call_end|><|tool_call_begin|>functions.stop:1<|tool_call_argument_begin|>{}<|tool_call_end|>"
        "<|tool_calls_section_end|>",
    ),
    "gpt-oss": Family(
        HARMONY,
        tool_formats.HARMONY,
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        + _A
        + "<|end|><|start|>assistant<|channel|>commentary to=functions.stop <|constrain|>json<|message|>{}",
        thoughts=reasoning.HARMONY,
        said="<|channel|>commentary<|message|>{}<|end|><|start|>assistant",
        answered="<|channel|>final<|message|>{}",
    ),
    "function-tags": Family(
        FUNCTION_TAGS,
        tool_formats.FUNCTION_TAGS,
        f"<function=get_weather>{_A}</function>\n<function=stop>{{}}</function>",
    ),
    "mistral-with-id": Family(
        MISTRAL_WITH_ID,
        tool_formats.MISTRAL_WITH_ID,
        f"[TOOL_CALLS]get_weather[CALL_ID]abcDEF123[ARGS]{_A}[TOOL_CALLS]stop[CALL_ID]abcDEF124[ARGS]{_B}",
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
