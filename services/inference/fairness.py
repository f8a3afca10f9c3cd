"""Whose turn it is: by priority, then the client that has been served least, then the oldest request."""

from bisect import insort
from collections.abc import Callable, Iterator

from services.inference.sequence import Sequence

Turn = tuple[int, float, int, int]


class Clients:
    """Tokens computed for each client that has requests.

    A client that comes, or comes back, starts level with the one served least: it neither waits for what others had
    before nor saves up. Source: Sheng et al. 2024, Fairness in Serving Large Language Models (virtual token counter).
    """

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._num_sequences: dict[str, int] = {}

    def enter(self, client: str) -> None:
        if client not in self._num_sequences:
            least = min((self._served[other] for other in self._num_sequences), default=0)
            self._served[client] = max(self._served.get(client, 0), least)
            self._num_sequences[client] = 0
        self._num_sequences[client] += 1

    def leave(self, client: str) -> None:
        self._num_sequences[client] -= 1
        if self._num_sequences[client] == 0:
            del self._num_sequences[client]
            least = min((self._served[other] for other in self._num_sequences), default=None)
            if least is None:
                self._served.clear()  # nobody is left to be compared with
            elif self._served[client] <= least:
                del self._served[client]  # it would be lifted to this if it came back

    def charge(self, client: str, num_tokens: int) -> None:
        self._served[client] += num_tokens

    def turn(self, seq: Sequence) -> Turn:
        """Who has the least is next."""
        return seq.priority, self._served[seq.client], seq.arrival, seq.choice


class WaitingQueue:
    """Sequences that hold no blocks, in order of arrival for each client and priority."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._queues: dict[tuple[int, str], list[Sequence]] = {}
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue

    def add(self, seq: Sequence) -> None:
        """A preempted sequence comes back to its place before all that arrived after it."""
        insort(self._queues.setdefault((seq.priority, seq.client), []), seq, key=by_age)
        self._len += 1

    def remove(self, seq: Sequence) -> None:
        queue = self._queues[seq.priority, seq.client]
        queue.remove(seq)
        if not queue:
            del self._queues[seq.priority, seq.client]
        self._len -= 1

    def heads(self, held_back: Callable[[Sequence], bool]) -> list[Sequence]:
        """Of each queue the first that nothing holds back, whose turn it is first."""
        heads = (next((seq for seq in queue if not held_back(seq)), None) for queue in self._queues.values())
        return sorted((seq for seq in heads if seq is not None), key=self._clients.turn)


def by_age(seq: Sequence) -> tuple[int, int, int]:
    """The more urgent first, then the older; the last is the first to be preempted."""
    return seq.priority, seq.arrival, seq.choice
