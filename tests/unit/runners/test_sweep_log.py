"""The log of a sweep: whole lines from many writers, the plan, the followed order; exclusion and covering of jobs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.errors import ConfigError
from runners.outcome import Outcome, State
from runners.sweep import ENV, Follower, SweepLog, chosen, covering, is_excluded

JOBS = [["trace=m_m", f"qps={qps}"] for qps in (1, 2)]
ROUND_ROBIN = [{"scheduler": "round_robin", "trace": "s_s"}, {"scheduler": "round_robin", "trace": "m_m"}]


def outcome(number: int, state: State = State.DONE) -> Outcome:
    return Outcome(state=state, settings={"qps": str(number)}, wall_s=0.5)


def test_plan_and_outcomes_are_read_back(tmp_path: Path) -> None:
    log = SweepLog.begin(tmp_path / "fig" / "sweeps", JOBS, excluded=3, git={"commit": "c"})
    assert log.plan() == {"jobs": 2, "excluded": 3, "varying": ["qps"], "git": {"commit": "c"}}
    assert log.experiment_directory == tmp_path / "fig"
    log.append(outcome(1).to_json())
    assert log.outcomes() == [outcome(1)]
    assert not log.any_failed()
    log.append(outcome(2, State.FAILED).to_json())
    assert log.any_failed()


def test_jobs_that_do_not_differ_are_told_apart_by_all_their_keys(tmp_path: Path) -> None:
    assert SweepLog.begin(tmp_path, JOBS[:1], 0, None).plan()["varying"] == ["trace", "qps"]


def test_an_interpolation_may_differ_between_jobs(tmp_path: Path) -> None:
    jobs = [[f"trace={trace}", "qps=$\\{trace.paper_qps.0\\}", "cv=1"] for trace in ("s_s", "m_m")]
    assert SweepLog.begin(tmp_path, jobs, 0, None).plan()["varying"] == ["trace", "qps"]


def test_lines_of_many_writers_do_not_mix(tmp_path: Path) -> None:
    log = SweepLog.begin(tmp_path, JOBS, 0, None)
    writers = [
        threading.Thread(target=lambda n=n: [log.append(outcome(100 * n + k).to_json()) for k in range(50)])
        for n in range(4)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(int(o.settings["qps"]) for o in log.outcomes()) == sorted(
        100 * n + k for n in range(4) for k in range(50)
    )


def test_the_follower_shows_each_job_once_in_the_order_of_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[int, str]] = []
    follower = Follower(lambda _log, number, o: shown.append((number, o.settings["qps"])))
    follower.start()  # before there is a log
    log = SweepLog.begin(tmp_path, JOBS, 0, None)
    monkeypatch.setenv(ENV, str(log.path))
    for number in (3, 1, 2):
        log.append(outcome(number).to_json())
    follower.stop()
    assert shown == [(1, "3"), (2, "1"), (3, "2")]


def test_half_a_line_is_left_for_later(tmp_path: Path) -> None:
    log = SweepLog.begin(tmp_path, JOBS, 0, None)
    with log.path.open("a") as file:
        file.write('{"state": "do')
    lines, end = log.lines()
    assert len(lines) == 1
    assert log.lines(end) == ([], end)


@pytest.mark.parametrize(
    ("choices", "excluded"),
    [
        ({"scheduler": "round_robin", "trace": "m_m", "engine": "sim"}, True),
        ({"scheduler": "round_robin", "trace": "sharegpt"}, False),
        ({"scheduler": "llumnix", "trace": "m_m"}, False),
        ({}, False),
    ],
)
def test_exclusion_is_a_partial_match(choices: dict[str, str], excluded: bool) -> None:
    assert is_excluded(choices, ROUND_ROBIN) is excluded
    assert not is_excluded(choices, [])
    assert not is_excluded(choices, [{}])


def test_overrides_change_the_default_choices() -> None:
    defaults = {"scheduler": "llumnix", "trace": "m_m"}
    assert chosen(["trace=s_s", "qps=7", "~x"], defaults) == {"scheduler": "llumnix", "trace": "s_s", "qps": "7"}


@pytest.mark.parametrize(("cv", "excluded"), [("2", True), ("3.0", True), ("1", False), ("${x}", False)])
def test_values_are_excluded_like_options_and_numbers_compare_as_numbers(cv: str, excluded: bool) -> None:
    exclude = [{"arrivals": "poisson", "cv": "2, 3,4"}]
    assert is_excluded({"arrivals": "poisson", "cv": cv}, exclude) is excluded
    assert not is_excluded({"arrivals": "gamma", "cv": cv}, exclude)
    assert not is_excluded({"arrivals": "poisson"}, exclude)


@pytest.mark.parametrize(
    ("qps", "excluded"), [("1.9", True), ("2", False), ("5", True), ("8.0", False), ("8.1", True), ("${x}", False)]
)
def test_all_rates_below_and_above_are_excluded(qps: str, excluded: bool) -> None:
    assert is_excluded({"trace": "m_m", "qps": qps}, [{"trace": "m_m", "qps": "<2, 5, >8"}]) is excluded


def test_a_bound_that_is_no_number_is_said() -> None:
    with pytest.raises(ConfigError, match="exclude: <many is no bound"):
        is_excluded({"qps": "2"}, [{"qps": "<many"}])


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=30))
def test_few_jobs_cover_every_override(jobs: list[list[str]]) -> None:
    kept = covering(jobs, set("abcdefgh"))
    assert {o for job in kept for o in job} == {o for job in jobs for o in job}
    assert len(kept) <= len({o for job in jobs for o in job})
    assert all(job in jobs for job in kept)


def test_a_product_is_covered_by_as_many_jobs_as_its_longest_side() -> None:
    product = [[f"trace={t}", f"scheduler={s}", f"qps={q}"] for t in range(7) for s in range(3) for q in range(5)]
    assert len(covering(product, {"trace", "scheduler", "qps"})) == 7
    assert len(covering(product, {"scheduler"})) == 3
    assert covering(product, {"cv"}) == []
