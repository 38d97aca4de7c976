"""How long a step takes by the tokens it computes alone, as it was measured: a line with steps in it.

Matrix products compute in tiles, and CUDA graphs are padded to sizes, so a token more can cost as much as the next
hundred: on an RTX 4090 the layers of an 8B model take 24 ms for 256 tokens and 34 ms for 272.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from llumnix.request import FloatArray

TILE_TOKENS = 64
"""Between two measured sizes that are no farther apart, a step takes what the larger one does; else they are joined."""
TOLERANCE = 0.003
"""By which a point may be off the line through others, relatively, and then be left out."""


@dataclass(frozen=True, slots=True)
class DenseLine:
    """Points of the line, which never falls; beyond the last one it goes on as between the last two."""

    tokens: FloatArray
    time_s: FloatArray

    @classmethod
    def through(cls, tokens: FloatArray, time_s: FloatArray) -> DenseLine:
        """The line through measured times at rising sizes; where they fall, through their means."""
        level_s = np.asarray(isotonic_regression(time_s).x)
        points = [(tokens[0], level_s[0])]
        for start, end, end_s in zip(tokens[:-1], tokens[1:], level_s[1:], strict=True):
            if 1 < end - start <= TILE_TOKENS:
                points.append((start + 1, end_s))
            points.append((end, end_s))
        at, by = np.array(_needed(points)).T
        # The last tiles are no slope to go on with, but the line to the end from its half is.
        half_s = np.interp(at[-1] / 2, at, by)
        return cls(np.append(at, 2 * at[-1]), np.append(by, 3 * by[-1] - 2 * half_s))

    def at(self, tokens: FloatArray) -> FloatArray:
        """Time of steps of so many tokens, in seconds."""
        (first, last), (first_s, last_s) = self.tokens[-2:], self.time_s[-2:]
        beyond_s = np.maximum(0, tokens - last) * (last_s - first_s) / (last - first)
        return np.asarray(np.interp(tokens, self.tokens, self.time_s) + beyond_s)


def _needed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points without which a line through the others would be off by more than TOLERANCE (Douglas and Peucker)."""
    at, by = np.array(points).T
    keep, parts = {0, len(points) - 1}, [(0, len(points) - 1)]
    while parts:
        start, end = parts.pop()
        between = slice(start + 1, end)
        if start + 1 >= end:
            continue
        line = np.interp(at[between], at[[start, end]], by[[start, end]])
        off = np.abs(line / by[between] - 1)
        worst = start + 1 + int(off.argmax())
        if off.max() > TOLERANCE:
            keep.add(worst)
            parts += [(start, worst), (worst, end)]
    return [points[place] for place in sorted(keep)]
