"""What `previous_response_id` refers to: finished responses, in memory, the least recently used given up first."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tgi_local.errors import NotFoundError

MAX_RESPONSES = 256
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The JSON of a response, and the conversation up to its end as chat messages; nobody changes them."""

    body: bytes
    turns: Sequence[dict[str, Any]]
    num_bytes: int


class ResponseStore:
    """Owns the stored responses. Event-loop thread only."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def put(self, response: dict[str, Any], turns: Sequence[dict[str, Any]]) -> None:
        body = orjson.dumps(response)
        stored = StoredResponse(body, turns, len(body) + len(orjson.dumps(turns)))
        self._responses[response["id"]] = stored
        self._num_bytes += stored.num_bytes
        while self._num_bytes > self._max_bytes or len(self._responses) > self._max_responses:
            _, oldest = self._responses.popitem(last=False)
            self._num_bytes -= oldest.num_bytes

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

    def delete(self, response_id: str) -> None:
        """Raises NotFoundError."""
        self._num_bytes -= self.get(response_id).num_bytes
        del self._responses[response_id]
