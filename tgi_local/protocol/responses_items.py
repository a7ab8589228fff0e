"""Items of OpenAI's Responses: what goes in, as messages of a chat, and as it is listed again."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.custom_tools import arguments_of
from tgi_local.protocol.wire import WireModel, new_id

# A message as the chat schema takes it.
Turn = dict[str, Any]

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_KNOWN_PARTS = ("input_image", "input_file", "input_audio", "computer_screenshot")
# Nothing of them is for the model to read: what a provider did to find an answer, which is in the message after it; and
# what it had to offer.
_LEFT_OUT = ("web_search_call", "mcp_list_tools", "tool_search_call", "tool_search_output")
_KNOWN_ITEMS = (
    "file_search_call",
    "computer_call",
    "computer_call_output",
    "code_interpreter_call",
    "image_generation_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "compaction",
    "program",
    "program_output",
    "additional_tools",
)
_ID_PREFIXES = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "local_shell_call": "lsh",
    "local_shell_call_output": "lsho",
    "web_search_call": "ws",
    "mcp_call": "mcp",
    "mcp_list_tools": "mcpl",
}


class Part(WireModel):
    type: str | None = None
    text: str | None = None
    refusal: str | None = None


class InputItem(WireModel):
    """One item of the input; which fields count depends on its type."""

    type: str | None = "message"
    id: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Any = None
    input: str | None = None
    output: str | list[Part] | dict[str, Any] | None = None
    action: dict[str, Any] | None = None
    server_label: str | None = None
    tools: list[Any] | None = None
    error: Any = None

    @property
    def kind(self) -> str:
        return self.type or "message"

    @property
    def referred_id(self) -> str | None:
        """The id of the stored item that this one stands for; the SDKs may leave its type out."""
        is_bare = self.kind == "message" and self.role is None and self.content is None
        return self.id if is_bare or self.type == "item_reference" else None

    def with_id(self) -> "InputItem":
        return self if self.id else self.model_copy(update={"id": new_item_id(self.kind)})


def new_item_id(kind: str) -> str:
    return new_id(_ID_PREFIXES.get(kind, "item"), "_")


def to_turns(items: Iterable[InputItem]) -> list[Turn]:
    """Items as chat messages. Raises UnsupportedError for those that a text model can not read."""
    turns: list[Turn] = []
    thought = ""  # of what comes after it
    for item in items:
        if item.kind == "message":
            turns.append({"role": item.role, "content": _text(item.content)})
        elif item.kind in _CALLS:
            _append_call(turns, item)
        elif item.kind == "reasoning":
            thought = _text(item.content) or _text(item.summary)
        elif item.kind in _OUTPUTS:
            # A shell's output has the call's id in place of its own.
            turns.append({"role": "tool", "content": _text(item.output), "tool_call_id": item.call_id or item.id})
        elif item.kind not in _LEFT_OUT:
            kind = item.kind if item.kind in _KNOWN_ITEMS else "unknown"
            raise UnsupportedError(f"input items of type {kind} are not supported", param="input")
        if thought and (item.kind in _CALLS or item.role == "assistant"):
            said = turns[-1] if turns[-1]["role"] == "assistant" else turns[-2]
            said.setdefault("reasoning_content", thought)
            thought = ""
    return turns


def listed(item: InputItem) -> dict[str, Any]:
    """An item as /v1/responses/{id}/input_items lists it; it has an id."""
    head = {"id": item.id, "type": item.kind}
    describe = _DESCRIBED.get(item.kind)
    if describe is not None:
        return head | describe(item)
    fields = item.model_dump(include={"action", "server_label", "tools"}, exclude_none=True)
    return head | ({"status": "completed"} if item.kind == "web_search_call" else {}) | fields


def _append_call(turns: list[Turn], item: InputItem) -> None:
    """Calls belong to the assistant's message before them, if there is one."""
    name, arguments = _CALLS[item.kind](item)
    call = {"id": item.call_id or item.id, "type": "function", "function": {"name": name, "arguments": arguments}}
    if turns and turns[-1]["role"] == "assistant":
        turns[-1].setdefault("tool_calls", []).append(call)
    else:
        turns.append({"role": "assistant", "content": "", "tool_calls": [call]})
    if item.kind == "mcp_call":  # it brings its result along
        result = _text(item.output) if item.output is not None else f"Error: {json.dumps(item.error)}"
        turns.append({"role": "tool", "content": result, "tool_call_id": call["id"]})


def _shell_arguments(item: InputItem) -> tuple[str, Any]:
    action = {key: value for key, value in (item.action or {}).items() if key != "type" and value not in (None, {})}
    return "local_shell", action


# What a call was, as name and arguments of a function's.
_CALLS: Mapping[str, Callable[[InputItem], tuple[str | None, Any]]] = {
    "function_call": lambda item: (item.name, item.arguments),
    "custom_tool_call": lambda item: (item.name, arguments_of(item.input or "")),
    "local_shell_call": _shell_arguments,
    "mcp_call": lambda item: (item.name, item.arguments),
}
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")


def _text(content: str | Sequence[Part] | dict[str, Any] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        raise ValidationError("an output must be a string or a list of parts", param="input")
    texts = []
    for part in content:
        text = part.refusal if part.type == "refusal" else part.text if part.type in _TEXT_PARTS else None
        if text is None:
            kind = part.type if part.type in _KNOWN_PARTS else "unknown"
            raise UnsupportedError(f"content parts of type {kind} are not supported by a text model", param="input")
        texts.append(text)
    return "".join(texts)


def _parts(content: str | Sequence[Part] | dict[str, Any] | None, kind: str) -> list[dict[str, Any]]:
    parts = [] if content is None or isinstance(content, dict) else content
    if isinstance(parts, str):
        parts = [Part(type=kind, text=parts)]
    own: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
    return [
        {"type": "refusal", "refusal": part.refusal}
        if part.type == "refusal"
        else {"type": kind, "text": part.text, **own}
        for part in parts
    ]


def _described_message(item: InputItem) -> dict[str, Any]:
    kind = "output_text" if item.role == "assistant" else "input_text"
    return {"role": item.role, "status": "completed", "content": _parts(item.content, kind)}


def _described_output(item: InputItem) -> dict[str, Any]:
    output = item.output if isinstance(item.output, str) else _parts(item.output, "input_text")
    return {"call_id": item.call_id, "output": output, "status": "completed"}


def _described_call(item: InputItem) -> dict[str, Any]:
    return {"call_id": item.call_id, "name": item.name, "arguments": item.arguments, "status": "completed"}


def _described_thought(item: InputItem) -> dict[str, Any]:
    content = _parts(item.content, "reasoning_text")
    return {"summary": _parts(item.summary, "summary_text")} | ({"content": content} if content else {})


_DESCRIBED: Mapping[str, Callable[[InputItem], dict[str, Any]]] = {
    "message": _described_message,
    "reasoning": _described_thought,
    "function_call": _described_call,
    "function_call_output": _described_output,
    "custom_tool_call": lambda item: {
        "call_id": item.call_id,
        "name": item.name,
        "input": item.input,
        "status": "completed",
    },
    "custom_tool_call_output": _described_output,
    "local_shell_call": lambda item: {"call_id": item.call_id, "action": item.action, "status": "completed"},
    "local_shell_call_output": lambda item: {"output": _text(item.output), "status": "completed"},
    "mcp_call": lambda item: item.model_dump(include={"name", "arguments", "server_label", "output", "error"}),
}
