"""Where a new request goes (§4.4.1), by the paper's rule and by those of today's routers."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum

from llumnix.load import FreenessRule, InstanceLoad, dispatch_freeness, kv_usage, requests_here
from llumnix.request import Priority


class DispatchRule(StrEnum):
    """round_robin: in turn, blind to load. freest: the instance of highest freeness, the last one among equals.
    first: always the first one, for measurements of a single source.

    Routers: least_requests: fewest running and waiting requests. power_of_two: the one with fewer of them among two
    that are drawn at random. least_kv: lowest KV usage, the demand of the queue included. Ties as for freest; of two
    drawn, the first.
    """

    round_robin = "round_robin"
    freest = "freest"
    first = "first"
    least_requests = "least_requests"
    power_of_two = "power_of_two"
    least_kv = "least_kv"


Merit = Callable[[InstanceLoad], float]
"""What an instance has to offer a new request, which goes where it is highest: -inf while draining, and never higher
for having fewer free blocks."""


def merit(rule: DispatchRule, freeness: FreenessRule, priority: Priority) -> Merit:
    """Return how `rule` values instances for a request of the given class; round_robin and first value none."""
    match rule:
        case DispatchRule.least_requests | DispatchRule.power_of_two:
            return lambda load: -math.inf if load.draining else -requests_here(load)
        case DispatchRule.least_kv:
            return lambda load: -math.inf if load.draining else -kv_usage(load)
        case _:
            return lambda load: dispatch_freeness(load, freeness, priority)


def two_of(count: int, first: float, second: float) -> tuple[int, int]:
    """Turn two numbers drawn uniformly from [0, 1) into two different places below `count`; the same if there is one.

    Every ordered pair is as likely as any other.
    """
    one = int(first * count)
    other = int(second * (count - 1))
    return (one, other + (other >= one)) if count > 1 else (0, 0)
