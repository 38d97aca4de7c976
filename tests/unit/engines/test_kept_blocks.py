"""Counts that tell what is left of preempted requests' blocks, against a queue of blocks with names."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from llumnix.engines.sim.kept import KeptBlocks
from llumnix.engines.sim.request import SimRequest
from llumnix.request import Priority

TOTAL, BLOCK_SIZE = 12, 4
actions = st.one_of(
    st.tuples(st.just("take"), st.integers(0, 6), st.just(0)),
    st.tuples(st.just("give"), st.integers(0, 6), st.just(0)),
    st.tuples(st.just("preempt"), st.integers(1, 5), st.integers(0, 3)),  # blocks, tokens short of filling the last
    st.tuples(st.just("resume"), st.integers(0, 20), st.sampled_from([0, 0, 1])),  # which, blocks not looked for
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(actions, max_size=40))
@example([("take", 6, 0), ("take", 6, 0), ("preempt", 2, 0), ("preempt", 2, 0), ("resume", 0, 0), ("take", 1, 0)])
def test_what_is_left_of_a_request_is_what_a_queue_of_its_blocks_still_has(steps: list[tuple[str, int, int]]) -> None:
    kept, queue, held = KeptBlocks(TOTAL), [None] * TOTAL, 0
    preempted: list[tuple[SimRequest, int]] = []
    for number, (what, size, more) in enumerate(steps):
        if what == "take":
            taken = min(size, len(queue))
            del queue[:taken]
            held += taken
        elif what == "give" and size <= held:
            kept.give(size)
            queue += [None] * size
            held -= size
        elif what == "preempt" and size <= held:
            request = SimRequest(number, 0, 1, 1, Priority.NORMAL)
            computed = size * BLOCK_SIZE - more
            kept.keep(request, size, computed, BLOCK_SIZE)
            full = computed // BLOCK_SIZE
            queue += [(request, place) if place < full else None for place in reversed(range(size))]
            held -= size
            preempted.append((request, full))
        elif what == "resume" and preempted:
            request, _ = preempted.pop(size % len(preempted))
            found = max(0, kept.left(request, len(queue)) - more)
            kept.find(request, found)
            for place in range(found):
                queue.remove((request, place))
            held += found
            queue = [None if entry is not None and entry[0] is request else entry for entry in queue]
        for request, full in preempted:
            left = sum((request, place) in queue for place in range(full))
            assert kept.left(request, len(queue)) == left
