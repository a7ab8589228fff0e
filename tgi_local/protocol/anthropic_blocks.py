"""Content blocks of Anthropic's messages, and what a text model is given to read of them."""

from collections.abc import Sequence
from typing import Any

from tgi_local.errors import UnsupportedError, ValidationError
from tgi_local.protocol.wire import WireModel

_KNOWN_BLOCKS = (
    "image",
    "tool_use",
    "tool_result",
    "server_tool_use",
    "web_search_tool_result",
    "web_fetch_tool_result",
    "code_execution_tool_result",
    "bash_code_execution_tool_result",
    "text_editor_code_execution_tool_result",
    "tool_search_tool_result",
    "tool_reference",
    "mcp_tool_use",
    "mcp_tool_result",
    "container_upload",
    "compaction",
)
_KNOWN_SOURCES = ("base64", "url", "file")


class TextBlock(WireModel):
    type: str
    text: str | None = None


class Source(WireModel):
    """Of a document: plain text, or text blocks."""

    type: str
    data: str | None = None
    content: str | list[TextBlock] | None = None


class Citations(WireModel):
    enabled: bool | None = False


class ReadableBlock(TextBlock):
    """A block that may be in a message or in a tool's result; which fields count depends on its type."""

    source: str | Source | None = None
    title: str | None = None
    context: str | None = None
    citations: Citations | list[Any] | None = None  # a list: of a text that an answer has brought
    content: str | list[TextBlock] | dict[str, Any] | None = None


class Block(ReadableBlock):
    id: str | None = None
    thinking: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[ReadableBlock] | dict[str, Any] | None = None  # type: ignore[assignment]
    is_error: bool | None = False


def text_of(content: str | Sequence[TextBlock] | dict[str, Any] | None, param: str) -> str:
    """Raises UnsupportedError for what a text model can not read."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, dict):
        raise ValidationError("the content of this block must be a string or a list of blocks", param=param)
    return "".join(_text(block, param) for block in content)


def _text(block: TextBlock, param: str) -> str:
    if block.type == "text" and block.text is not None:
        return block.text
    if isinstance(block, ReadableBlock) and block.type in ("document", "search_result"):
        if isinstance(block.citations, Citations) and block.citations.enabled:
            raise UnsupportedError("`citations` are not supported", param=param)
        return _document(block, param) if block.type == "document" else _search_result(block, param)
    kind = block.type if block.type in _KNOWN_BLOCKS else "unknown"
    raise UnsupportedError(f"content blocks of type {kind} are not supported by a text model", param=param)


def _document(block: ReadableBlock, param: str) -> str:
    source = block.source
    if not isinstance(source, Source):
        raise ValidationError("document blocks need a `source`", param=param)
    if source.type == "text" and source.data is not None:
        text = source.data
    elif source.type == "content":
        text = text_of(source.content, param)
    else:
        kind = source.type if source.type in _KNOWN_SOURCES else "unknown"
        raise UnsupportedError(
            f"documents whose source is of type {kind} are not supported by a text model", param=param
        )
    return _element("document", {"title": block.title, "context": block.context}, text)


def _search_result(block: ReadableBlock, param: str) -> str:
    source = block.source if isinstance(block.source, str) else None
    return _element("search_result", {"source": source, "title": block.title}, text_of(block.content, param))


def _element(name: str, heads: dict[str, str | None], text: str) -> str:
    """Marked as Anthropic advises to mark documents in a prompt; models of other makers have seen such tags, too."""
    lines = [f"<{head}>{value}</{head}>" for head, value in heads.items() if value]
    return "\n".join([f"<{name}>", *lines, text, f"</{name}>", ""])
