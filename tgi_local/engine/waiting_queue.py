"""Who is next: first come first served within a principal, principals in turn."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, islice

from tgi_local.engine.sequence import Sequence


class WaitingQueue:
    """Owns the sequences that wait to run. Called by the scheduler only.

    Preempted sequences had their turn already: they go before all others, the oldest first. Only `take` passes the
    turn on; a sequence that is looked at and left keeps its place, and its principal the turn.
    """

    def __init__(self) -> None:
        self._preempted: OrderedDict[str, Sequence] = OrderedDict()  # by request id, as below
        self._arrived: OrderedDict[str, OrderedDict[str, Sequence]] = (
            OrderedDict()
        )  # by principal, whose turn it is first
        self._num_arrived = 0

    def __len__(self) -> int:
        return len(self._preempted) + self._num_arrived

    def add(self, sequence: Sequence) -> None:
        self._arrived.setdefault(sequence.request.principal, OrderedDict())[sequence.request_id] = sequence
        self._num_arrived += 1

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence; preemption goes from the newest to the oldest, so the last one is the oldest."""
        self._preempted[sequence.request_id] = sequence
        self._preempted.move_to_end(sequence.request_id, last=False)

    def candidates(self, limit: int) -> list[Sequence]:
        """The first `limit` sequences in the order in which they should be admitted."""
        return list(islice(chain(self._preempted.values(), self._in_turn()), limit))

    def take(self, sequence: Sequence) -> None:
        """Remove `sequence` because it may run now."""
        is_turn = sequence.request_id not in self._preempted
        self.remove(sequence)
        if is_turn and sequence.request.principal in self._arrived:
            self._arrived.move_to_end(sequence.request.principal)

    def remove(self, sequence: Sequence) -> None:
        if self._preempted.pop(sequence.request_id, None) is not None:
            return
        queue = self._arrived[sequence.request.principal]
        del queue[sequence.request_id]
        self._num_arrived -= 1
        if not queue:
            del self._arrived[sequence.request.principal]

    def _in_turn(self) -> Iterator[Sequence]:
        rounds = [iter(queue.values()) for queue in self._arrived.values()]
        while rounds:
            still: list[Iterator[Sequence]] = []
            for queue in rounds:
                sequence = next(queue, None)
                if sequence is not None:
                    yield sequence
                    still.append(queue)
            rounds = still
