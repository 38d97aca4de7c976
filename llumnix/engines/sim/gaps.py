"""The longest time between two tokens, for any request of a batch, without looking at every request in every step."""

from __future__ import annotations

from bisect import bisect_right


class GapHistory:
    """Gaps between the decode steps of one instance, kept as the record holders from the end.

    An entry stays only while no later gap is at least as long, so gaps fall from left to right and the first entry
    after a step is the longest gap since that step. Amortised O(1) to add, O(log n) to ask.
    """

    __slots__ = ("_gaps_ps", "_steps", "last_token_ps")

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._gaps_ps: list[int] = []
        self.last_token_ps = 0

    def add(self, step: int, first_end_ps: int, steps: int, end_ps: int, last_step_ps: int) -> None:
        """Note `steps` decode steps, numbered from `step` on: the first ended at `first_end_ps`, the last at `end_ps`.

        The first gap counts from the decode step before; of the others the last, of `last_step_ps`, is the longest.
        """
        gaps_ps, numbers = self._gaps_ps, self._steps
        gap_ps = first_end_ps - self.last_token_ps
        while gaps_ps and gaps_ps[-1] <= gap_ps:
            gaps_ps.pop()
            numbers.pop()
        gaps_ps.append(gap_ps)
        numbers.append(step)
        if steps > 1:
            while gaps_ps and gaps_ps[-1] <= last_step_ps:
                gaps_ps.pop()
                numbers.pop()
            gaps_ps.append(last_step_ps)
            numbers.append(step + steps - 1)
        self.last_token_ps = end_ps

    def longest_after(self, step: int) -> int:
        """Return the longest gap of the steps after number `step`, in ps; 0 if there is none."""
        place = bisect_right(self._steps, step)
        return self._gaps_ps[place] if place < len(self._gaps_ps) else 0
