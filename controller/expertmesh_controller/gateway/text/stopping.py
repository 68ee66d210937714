"""Stop strings over a stream of text: nothing is let out that might be the beginning of one."""

from __future__ import annotations

__all__ = ["StopFilter"]


class StopFilter:
    """Feed text, get the text that is safe to show. After the first stop string nothing more comes."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Text that can no longer belong to a stop string; the stop string itself and what follows never come out."""
        if self.stopped:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._release(min(places), keep=False)
        return self._release(len(self._held) - self._possible_beginning(), keep=True)

    def flush(self) -> str:
        """What was held back, now that no more text will come."""
        return self._release(len(self._held), keep=False)

    def _release(self, count: int, *, keep: bool) -> str:
        out, rest = self._held[:count], self._held[count:]
        self._held = rest if keep else ""
        return out

    def _possible_beginning(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stops):
                return count
        return 0
