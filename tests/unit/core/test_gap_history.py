"""The longest gap between tokens, against a list of all gaps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llumnix.engines.sim.gaps import GapHistory


def test_no_step_no_gap() -> None:
    history = GapHistory()
    assert history.longest_after(0) == 0
    history.add(1, 50)
    assert history.longest_after(1) == 0


def test_only_steps_after_the_given_one_count() -> None:
    history = GapHistory()
    for step, end_ps in enumerate([10, 40, 45, 65, 66], start=1):  # gaps 10, 30, 5, 20, 1
        history.add(step, end_ps)
    assert [history.longest_after(s) for s in range(6)] == [30, 30, 20, 20, 1, 0]
    assert history.last_token_ps == 66


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6), st.integers(1, 12), st.integers(0, 5), st.integers(0, 30))))
def test_runs_of_steps_are_remembered_like_single_ones(runs: list[tuple[bool, int, int, int, int]]) -> None:
    history, gaps = GapHistory(), [0]  # gaps[s]: before the token of step s
    now_ps = step = 0
    for single, steps, first_ps, growth_ps, pause_ps in runs:
        gaps.append(pause_ps + first_ps)
        now_ps += gaps[-1]
        step += 1
        history.add(step, now_ps)
        if not single:
            following = [first_ps + growth_ps * k for k in range(1, steps + 1)]
            gaps += following
            now_ps += sum(following)
            step += steps
            history.add_run(step, now_ps, following[-1])
        assert history.last_token_ps == now_ps
        # a run keeps only its last, longest gap, and is asked only for whole runs or for its end
    asked = 0
    for single, steps, *_ in runs:
        assert history.longest_after(asked) == max(gaps[asked + 1 :], default=0)
        asked += 1
        assert history.longest_after(asked) == max(gaps[asked + 1 :], default=0)
        asked += 0 if single else steps
    assert history.longest_after(asked) == 0
