"""Who is next: first come first served within a principal, principals in turn."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

from tgi_local.engine.sequence import Sequence


class WaitingQueue:
    """Owns the sequences that wait to run. Called by the scheduler only.

    Preempted sequences had their turn already: they go before all others, the oldest first. Only `take` passes the
    turn on; a sequence that is looked at and left keeps its place, and its principal the turn.
    """

    def __init__(self) -> None:
        self._preempted: deque[Sequence] = deque()
        self._arrived: OrderedDict[str, deque[Sequence]] = OrderedDict()  # by principal, whose turn it is first

    def __len__(self) -> int:
        return len(self._preempted) + sum(map(len, self._arrived.values()))

    def add(self, sequence: Sequence) -> None:
        self._arrived.setdefault(sequence.request.principal, deque()).append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence; preemption goes from the newest to the oldest, so the last one is the oldest."""
        self._preempted.appendleft(sequence)

    def candidates(self, limit: int) -> list[Sequence]:
        """The first `limit` sequences in the order in which they should be admitted."""
        return list(islice(self._in_order(), limit))

    def take(self, sequence: Sequence) -> None:
        """Remove `sequence` because it may run now."""
        is_turn = sequence not in self._preempted
        self.remove(sequence)
        if is_turn and sequence.request.principal in self._arrived:
            self._arrived.move_to_end(sequence.request.principal)

    def remove(self, sequence: Sequence) -> None:
        if sequence in self._preempted:
            self._preempted.remove(sequence)
            return
        queue = self._arrived[sequence.request.principal]
        queue.remove(sequence)
        if not queue:
            del self._arrived[sequence.request.principal]

    def _in_order(self) -> Iterator[Sequence]:
        yield from self._preempted
        rounds = [iter(queue) for queue in self._arrived.values()]
        while rounds:
            still: list[Iterator[Sequence]] = []
            for queue in rounds:
                sequence = next(queue, None)
                if sequence is not None:
                    yield sequence
                    still.append(queue)
            rounds = still
