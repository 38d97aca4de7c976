"""The longest gap between tokens, against a list of all gaps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llumnix.engines.sim.gaps import GapHistory


def test_no_step_no_gap() -> None:
    history = GapHistory()
    assert history.longest_after(0) == 0
    history.add(1, 50, 1, 50, 50)
    assert history.longest_after(1) == 0


def test_only_steps_after_the_given_one_count() -> None:
    history = GapHistory()
    for step, end_ps in enumerate([10, 40, 45, 65, 66], start=1):  # gaps 10, 30, 5, 20, 1
        history.add(step, end_ps, 1, end_ps, 1)
    assert [history.longest_after(s) for s in range(6)] == [30, 30, 20, 20, 1, 0]
    assert history.last_token_ps == 66


RUNS = st.tuples(
    st.integers(0, 30),  # pause before the run
    st.integers(1, 12),  # its first step
    st.integers(0, 5),  # by which each step is longer than the one before
    st.integers(1, 6),  # steps
)


@given(st.lists(RUNS))
def test_runs_of_growing_steps_are_remembered_like_every_single_step(runs: list[tuple[int, int, int, int]]) -> None:
    history, gaps, ends = GapHistory(), [0], [0]  # gaps[s], ends[s]: of the token of step s
    asked = [0]  # requests join between runs, and miss the first gap of their first one
    for pause_ps, first_ps, growth_ps, steps in runs:
        first_step = len(gaps)
        lengths = [first_ps + growth_ps * k for k in range(steps)]
        for length in [pause_ps + lengths[0], *lengths[1:]]:
            gaps.append(length)
            ends.append(ends[-1] + length)
        history.add(first_step, ends[first_step], steps, ends[-1], lengths[-1])
        assert history.last_token_ps == ends[-1]
        for since in asked:
            assert history.longest_after(since) == max(gaps[since + 1 :], default=0)
        asked += [first_step, len(gaps) - 1]
