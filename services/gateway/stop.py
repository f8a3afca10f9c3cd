"""Stop strings in a text that arrives in pieces."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first stop string, wherever the pieces are cut.

    What `feed` and `finish` return, joined, is the whole text before the earliest place where any stop string starts.
    Text that may yet turn out to be the start of one is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Take the next piece; return what is certain to come before any stop string."""
        self._held += text
        match, undecided = self._first_match(), self._first_undecided()
        if match is not None and match <= undecided:
            return self._stop_at(match)
        passed, self._held = self._held[:undecided], self._held[undecided:]
        return passed

    def finish(self) -> str:
        """The text has ended: return what was held back, up to a stop string if it has one."""
        match = self._first_match()
        if match is not None:
            return self._stop_at(match)
        passed, self._held = self._held, ""
        return passed

    def _stop_at(self, position: int) -> str:
        self.found = True
        passed, self._held = self._held[:position], ""
        return passed

    def _first_match(self) -> int | None:
        places = (self._held.find(stop) for stop in self._stops)
        return min((place for place in places if place >= 0), default=None)

    def _first_undecided(self) -> int:
        """The earliest place from which the text so far is the beginning of a stop string; else the text's end."""
        end = len(self._held)
        for start in range(max(0, end - self._longest + 1), end):
            rest = self._held[start:]
            if any(len(stop) > len(rest) and stop.startswith(rest) for stop in self._stops):
                return start
        return end
