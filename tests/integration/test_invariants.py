"""What holds for every run whatever happens in it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import A10, Case, cases, examples, heavy_tailed, settled, workload
from hypothesis import given

from llumnix.cluster.spec import ClusterSpec
from llumnix.cluster.virtual import INSTANCE_TYPES, VirtualCluster
from llumnix.engines.sim.cost import StepCost
from llumnix.engines.sim.spec import SimEngine
from llumnix.policies.migration import MigrationPolicy, Pair
from llumnix.policies.scaling import ScalingPolicy
from llumnix.policies.spec import LoadReports, Scheduler
from llumnix.record import EVENTS, INSTANCES, REQUESTS, write_table


@examples(30)
@given(cases())
def test_every_request_ends_once_with_all_its_tokens(case: Case) -> None:
    cluster = case.build()
    result = cluster.run()
    asked, rows = case.workload, result.requests
    assert rows["request_id"].tolist() == list(range(len(asked)))
    np.testing.assert_array_equal(rows["prompt_tokens"], asked.prompt_tokens)
    np.testing.assert_array_equal(rows["output_tokens"], asked.output_tokens)
    np.testing.assert_array_equal(rows["priority"], asked.priority)
    events = zip(result.events["kind"], result.events["request_id"], strict=True)
    dispatched = Counter(request for kind, request in events if kind == "dispatch")
    for i, request in enumerate(cluster.requests):
        if rows["status"][i] == "rejected":
            assert rows["error"][i]
            assert request.generated == 0
            assert dispatched[i] == 0
            assert rows["instance_first"][i] == -1  # none
            assert np.isnan([rows[c][i] for c in ("dispatch_s", "first_token_s")]).all()
        else:
            assert rows["status"][i] == "finished"
            assert request.generated == asked.output_tokens[i]
            assert dispatched[i] == 1


@examples(30)
@given(cases())
def test_times_of_a_request_fit_together(case: Case) -> None:
    result = case.run()
    rows = {name: np.asarray(column) for name, column in result.requests.items()}
    done = rows["status"] == "finished"
    arrival, first, end, gap, exec_s, loss, downtime, moving, tokens = (
        rows[c][done]
        for c in (
            "arrival_s",
            "first_token_s",
            "end_s",
            "max_token_gap_s",
            "exec_s",
            "preemption_loss_s",
            "migration_downtime_s",
            "migration_gap_s",
            "output_tokens",
        )
    )
    tick = 1e-9
    assert (arrival <= first).all()
    assert (first <= end).all()
    assert ((tokens > 1) | (first == end)).all()
    assert (gap * (tokens - 1) >= end - first - tick).all(), "gaps add up to the time between first and last token"
    assert (gap <= end - first + tick).all()
    assert (exec_s <= end - arrival + tick).all()
    assert (loss <= end - arrival + tick).all()
    assert (downtime <= moving + tick).all(), "each downtime is in the gap around its migration"
    assert (moving <= np.maximum(gap * rows["migrations"][done], 0) + tick).all(), "which is no longer than the longest"


@examples(30)
@given(cases())
def test_events_tell_what_the_request_rows_count(case: Case) -> None:
    result = case.run()
    events = list(zip(*(result.events[c] for c in ("time_s", "kind", "instance_id", "request_id")), strict=True))
    assert [e[0] for e in events] == sorted(e[0] for e in events)
    count = Counter((kind, request) for _, kind, _, request in events)
    ids = result.requests["request_id"]
    assert [count["preempt", i] for i in ids] == result.requests["preemptions"].tolist()
    assert [count["migrate_commit", i] for i in ids] == result.requests["migrations"].tolist()
    assert [count["reject", i] for i in ids] == [int(s == "rejected") for s in result.requests["status"]]
    last: dict[int, int] = {}
    for _, kind, instance, request in events:
        if kind in ("dispatch", "migrate_commit"):
            last[request] = instance
        elif kind in ("preempt", "migrate_start"):
            assert last[request] == instance, "it happens where the request is"
    assert [last.get(i, -1) for i in ids] == result.requests["instance_last"].tolist()


@examples(30)
@given(cases())
def test_blocks_and_places_are_all_given_back(case: Case) -> None:
    cluster = settled(case)
    kinds = Counter(cluster.run().events["kind"])
    assert kinds["migrate_start"] == kinds["migrate_commit"] + kinds["migrate_abort"]
    for instance in cluster.instances:
        assert instance.free_blocks == instance.total_blocks
        assert instance.inbound == 0
        assert instance.high_priority == 0
        assert not instance.running
        assert not instance.waiting
        assert not instance.busy
        assert not instance.migrating


@examples(30)
@given(cases())
def test_samples_stay_within_the_instance(case: Case) -> None:
    samples = {name: np.asarray(column) for name, column in case.run().instances.items()}
    assert (samples["free_blocks"] >= 0).all()
    assert (samples["free_blocks"] <= samples["total_blocks"]).all()
    assert (samples["waiting"] >= 0).all()
    draining = samples["draining"]
    idle = (samples["running"] == 0) & (samples["waiting"] == 0) & ~draining
    assert np.isposinf(samples["freeness"][idle]).all()
    assert np.isneginf(samples["freeness"][draining]).all()
    assert np.isfinite(samples["freeness"][~idle & ~draining]).all()
    assert case.scheduler.scaling.enabled or not draining.any()


# --- the order of what happens at one instant

_ARRIVAL, _MESSAGE, _ROUND, _CHECK, _SAMPLE, _STEP_END = range(6)


def instants(case: Case) -> list[tuple[int, int]]:
    """Return what happens in a run, in that order, as (time in ps, kind)."""
    log: list[tuple[int, int]] = []
    choosing: list[Pair] = []  # a move that begins looks at the present load of its source, too

    class Logged(INSTANCE_TYPES[case.engine.batching]):  # type: ignore[misc]
        def boundary(self, now_ps: int) -> None:
            log.append((now_ps, _STEP_END))
            super().boundary(now_ps)

        def present_load(self, now_ps: int) -> object:
            if not choosing:
                log.append((now_ps, _SAMPLE))
            return super().present_load(now_ps)

    cluster = case.build(Logged)
    scheduler, send, start_move = cluster.scheduler, cluster.send, cluster._start_move

    def begin(pair: Pair) -> None:
        choosing.append(pair)
        start_move(pair)
        choosing.pop()

    cluster._start_move = begin
    dispatch, migration_round = scheduler.dispatch, scheduler.migration_round
    scheduler.dispatch = lambda priority: log.append((cluster.now_ps, _ARRIVAL)) or dispatch(priority)
    scaling_check = scheduler.scaling_check
    scheduler.scaling_check = lambda starting: log.append((cluster.now_ps, _CHECK)) or scaling_check(starting)
    scheduler.migration_round = lambda now: log.append((cluster.now_ps, _ROUND)) or migration_round(now)
    cluster.send = lambda action, delay_ps: send(lambda: log.append((cluster.now_ps, _MESSAGE)) or action(), delay_ps)
    cluster.run()
    return log


@examples(30)
@given(cases(LoadReports.completed_step))
def test_at_one_instant_arrivals_come_first_then_messages_rounds_checks_samples_and_step_ends(case: Case) -> None:
    log = instants(case)
    assert log == sorted(log)


def test_the_order_holds_where_all_six_meet() -> None:
    """Steps of 50 ms, messages of 100 ms, the other three every 100 ms: at 0.2 s they all meet an arrival."""
    log = instants(
        Case(
            workload([(0.0, 10, 100, 0), (0.0, 10, 3, 0), (0.2, 10, 100, 0)]),  # the second one ends at 0.2 s
            ClusterSpec(instances=2, kv_blocks=100),
            StepCost(step_gap_ms=5, decode_base_ms=45, prefill_floor_ms=45, control_ms=100),
            Scheduler(
                migration=MigrationPolicy(
                    enabled=True, period_s=0.1, out_threshold_blocks=1e6, in_threshold_blocks=1e6
                ),
                scaling=ScalingPolicy(
                    enabled=True, low_blocks=0, width_blocks=1e6, check_period_s=0.1, first_check_s=0.1
                ),
            ),
            SimEngine(sample_period_s=0.1),
        )
    )
    assert {kind for now_ps, kind in log if now_ps == 2 * 10**11} == {
        _ARRIVAL,
        _MESSAGE,
        _ROUND,
        _CHECK,
        _SAMPLE,
        _STEP_END,
    }
    assert log == sorted(log)


# --- determinism


def busy_case() -> Case:
    """Return a run of some hundred requests with preemptions, migrations and both classes."""
    return Case(
        workload=heavy_tailed(400, rate=4.0, mean_tokens=200, high_fraction=0.1),
        cluster=ClusterSpec(instances=4, kv_blocks=300),
        step_cost=A10,
        scheduler=Scheduler(
            migration=MigrationPolicy(enabled=True, out_threshold_blocks=10, in_threshold_blocks=10, max_stages=3)
        ),
        engine=SimEngine(sample_period_s=5.0),
        kv_bytes_per_token=524_288,
    )


def records(directory: Path) -> dict[str, bytes]:
    """Run the busy case and return the bytes of its tables."""
    result = busy_case().run()
    assert {"preempt", "migrate_commit"} <= set(result.events["kind"])
    tables = {"requests": REQUESTS, "events": EVENTS, "instances": INSTANCES}
    for name, schema in tables.items():
        write_table(directory / f"{name}.parquet", schema, getattr(result, name), {"run": "busy"})
    return {name: (directory / f"{name}.parquet").read_bytes() for name in tables}


def test_the_same_run_leaves_the_same_bytes(tmp_path: Path) -> None:
    assert records(tmp_path) == records(tmp_path)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_bytes_do_not_depend_on_the_process(hash_seed: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    here = Path(__file__).parent
    code = f"import pathlib, test_invariants; test_invariants.records(pathlib.Path({str(theirs)!r}))"
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{here}:{here.parents[1]}"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    for name, content in records(ours).items():
        assert (theirs / f"{name}.parquet").read_bytes() == content


def test_a_run_does_not_depend_on_what_ran_before_it() -> None:
    case = busy_case()
    first = case.run()
    replace(case, scheduler=Scheduler()).run()
    again = case.run()
    np.testing.assert_array_equal(first.requests["instance_last"], again.requests["instance_last"])
    np.testing.assert_array_equal(first.requests["end_s"], again.requests["end_s"])


def test_requests_still_to_come_do_not_change_what_has_happened() -> None:
    whole = busy_case()
    half = len(whole.workload) // 2
    columns = ("arrival_s", "prompt_tokens", "output_tokens", "priority")
    front = replace(whole.workload, **{c: getattr(whole.workload, c)[:half] for c in columns})
    until = whole.workload.arrival_s[half] - 1e-9  # times of events are whole picoseconds

    def events(cluster: VirtualCluster) -> list[tuple[object, ...]]:
        return [row for row in zip(*cluster.run().events.values(), strict=True) if row[0] < until]

    assert events(replace(whole, workload=front).build()) == events(whole.build())
