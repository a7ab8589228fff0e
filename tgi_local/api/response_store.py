"""What `previous_response_id` and item references refer to: finished responses, in memory, the least recently used given up first."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tgi_local.errors import NotFoundError
from tgi_local.protocol.responses_items import InputItem

MAX_RESPONSES = 256
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The JSON of a response, the whole conversation that it answers, and its output. Nobody changes them."""

    body: bytes
    input: Sequence[InputItem]
    output: Sequence[InputItem]
    num_bytes: int

    @property
    def conversation(self) -> Sequence[InputItem]:
        return [*self.input, *self.output]

    def page(self, limit: int, *, is_ascending: bool, after: str | None) -> tuple[Sequence[InputItem], bool]:
        """`limit` items of the input that follow `after`, and whether there are more. Raises NotFoundError."""
        items = self.input if is_ascending else self.input[::-1]
        start = 0
        if after is not None:
            ids = [item.id for item in items]
            if after not in ids:
                raise NotFoundError("No such item in the input of this response", param="after", code="item_not_found")
            start = ids.index(after) + 1
        return items[start : start + limit], start + limit < len(items)


class ResponseStore:
    """Owns the stored responses. Event-loop thread only."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()
        self._owners: dict[str, str] = {}  # the response of each item

    def put(self, response: dict[str, Any], input: Sequence[InputItem] = (), output: Sequence[InputItem] = ()) -> None:
        """Items without an id get one. Those that several responses share are counted for each."""
        body = orjson.dumps(response)
        input = [item.with_id() for item in input]
        num_bytes = len(body) + sum(len(item.model_dump_json(exclude_none=True)) for item in (*input, *output))
        stored = StoredResponse(body, input, output, num_bytes)
        self._responses[response["id"]] = stored
        self._owners |= {item.id: response["id"] for item in output if item.id is not None}
        self._num_bytes += stored.num_bytes
        while self._num_bytes > self._max_bytes or len(self._responses) > self._max_responses:
            self._drop(next(iter(self._responses)))

    def get(self, response_id: str, param: str | None = None) -> StoredResponse:
        """Raises NotFoundError; `param` is where the id was given."""
        if response_id not in self._responses:
            raise NotFoundError(
                "No such response: it was never stored, was deleted, or has made room for later ones",
                param=param,
                code="previous_response_not_found" if param is not None else "response_not_found",
            )
        self._responses.move_to_end(response_id)
        return self._responses[response_id]

    def item(self, item_id: str) -> InputItem:
        """One item of a stored response's output. Raises NotFoundError."""
        if item_id not in self._owners:
            raise NotFoundError(
                "No such item: the response that held it was never stored, was deleted, or has made room for later ones",
                param="input",
                code="item_not_found",
            )
        return next(item for item in self.get(self._owners[item_id]).output if item.id == item_id)

    def delete(self, response_id: str) -> None:
        """Raises NotFoundError."""
        self.get(response_id)
        self._drop(response_id)

    def _drop(self, response_id: str) -> None:
        dropped = self._responses.pop(response_id)
        self._num_bytes -= dropped.num_bytes
        for item in dropped.output:
            self._owners.pop(item.id or "", None)
