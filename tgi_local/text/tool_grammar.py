"""The grammar of an answer with tool calls, in llguidance's Lark syntax
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tgi_local.text.tool_calls import CLOSE_TAG, OPEN_TAG


@dataclass(frozen=True, slots=True)
class CallTags:
    """How the tags around a call are written: as one token each, where they have one, or letter by letter.

    `control_ids` are the tokens that free text may hold beside ordinary ones; `end_ids` end it.
    """

    open_id: int | None
    close_id: int | None
    control_ids: Collection[int]
    end_ids: Collection[int]


def bare_call(names: Sequence[str], schemas: Sequence[str]) -> str:
    """One call as plain JSON, for models that were trained on no format of their own."""
    return "start: body\n" + _body(names, schemas)


def forced_calls(tags: CallTags, names: Sequence[str], schemas: Sequence[str], max_calls: int) -> str:
    """Calls and nothing else."""
    open_tag = _token(tags.open_id, OPEN_TAG)
    return (
        f"start: call{_up_to(max_calls - 1, 'next_call')}\n"
        f'next_call: "\\n" call\n'
        f'call: {open_tag} "\\n" body "\\n" {_close_tag(tags)}\n'
    ) + _body(names, schemas)


def text_with_calls(tags: CallTags, names: Sequence[str], schemas: Sequence[str], max_calls: int) -> str:
    """Any text; what follows an open tag is a call, and nothing follows the last that is allowed."""
    if tags.open_id is not None:
        free = f"text: {_any_but([tags.open_id, *tags.end_ids])}*\nopen: text {_token(tags.open_id, OPEN_TAG)}\n"
    else:
        control = "".join(f" | <[{id}]>" for id in sorted(set(tags.control_ids) - set(tags.end_ids)))
        free = (
            f"text: (TEXT{control})*\nTEXT: /(.|\\n)+/\n"
            f"open: text text_and_tag\ntext_and_tag[lazy]: /(.|\\n)*/ {_literal(OPEN_TAG)}\n"
        )
    return (
        f"start:{_up_to(max_calls - 1, 'call')} text | call{{{max_calls}}}\n{free}"
        f'call: open "\\n" body "\\n" {_close_tag(tags)}\n'
    ) + _body(names, schemas)


def _body(names: Sequence[str], schemas: Sequence[str]) -> str:
    """One rule per tool, so that each schema keeps a root of its own for its references."""
    rules = [
        f"tool_{i}: {_literal(_head(name))} %json {schema} {_literal('}')}\n"
        for i, (name, schema) in enumerate(zip(names, schemas, strict=True))
    ]
    return f"body: {' | '.join(f'tool_{i}' for i in range(len(rules)))}\n" + "".join(rules)


def _head(name: str) -> str:
    return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '


def _up_to(count: int, rule: str) -> str:
    return f" {rule}{{0,{count}}}" if count else ""


def _close_tag(tags: CallTags) -> str:
    return _token(tags.close_id, CLOSE_TAG)


def _token(token_id: int | None, text: str) -> str:
    return _literal(text) if token_id is None else f"<[{token_id}]>"


def _any_but(token_ids: Collection[int]) -> str:
    return f"<[^{','.join(str(id) for id in sorted(set(token_ids)))}]>"


def _literal(text: str) -> str:
    return json.dumps(text)
