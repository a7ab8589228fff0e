"""`truncation: "auto"` of OpenAI's Responses: the oldest of a conversation goes until the rest fits."""

from collections.abc import Sequence

from starlette.requests import Request

from tgi_local.api.body import apart
from tgi_local.api.context import context
from tgi_local.api.sse import until_disconnect
from tgi_local.errors import ValidationError
from tgi_local.protocol.openai import to_conversation
from tgi_local.protocol.responses import PromptFields, ResponsesRequest, template_kwargs, to_chat
from tgi_local.protocol.responses_items import Turn

_INSTRUCTING = ("system", "developer")


async def truncated(request: Request, body: PromptFields, turns: Sequence[Turn]) -> Sequence[Turn]:
    """`turns` without as many of the oldest as must go; all that may, where even then the rest does not fit."""
    if await _fits(request, body, turns):
        return turns
    oldest = droppable(turns)
    low, high = 1, len(oldest)
    while low < high:  # the fewest that are enough
        middle = (low + high) // 2
        if await _fits(request, body, without(turns, oldest[:middle])):
            high = middle
        else:
            low = middle + 1
    return without(turns, oldest[:low])


def droppable(turns: Sequence[Turn]) -> list[range]:
    """What may go, the oldest first, in pieces that belong together.

    Before the last message of the user that is a question with its answer, after it a call with its results. That
    message stays, and so do instructions and the last piece.
    """
    starts = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
    last = starts[-1] if starts else -1
    cuts = [i for i, turn in enumerate(turns) if turn["role"] == "user" or (i > last and turn["role"] != "tool")]
    if starts or cuts:
        cuts = sorted({0, *cuts})
    pieces = [range(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(turns)], strict=True)]
    return [piece for piece in pieces[:-1] if last not in piece]


def without(turns: Sequence[Turn], dropped: Sequence[range]) -> list[Turn]:
    return [
        turn for i, turn in enumerate(turns) if turn["role"] in _INSTRUCTING or not any(i in piece for piece in dropped)
    ]


async def _fits(request: Request, body: PromptFields, turns: Sequence[Turn]) -> bool:
    service = context(request).service
    model = service.model
    switches = template_kwargs(body, model.template.reads)
    chat = await apart(request, lambda: to_chat(body, turns))
    conversation = await apart(request, lambda: to_conversation(chat, switches))
    try:
        prompt = await until_disconnect(request, service.render_chat(conversation))
    except ValidationError as error:
        if error.code == "context_length_exceeded":  # by its characters alone
            return False
        raise
    wanted = (body.max_output_tokens if isinstance(body, ResponsesRequest) else None) or 1
    return model.limits.has_room(len(prompt.token_ids), wanted)
