"""Where migration pays: pairs of runs, usage and room of an instance, classes of the map, its figure and table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from analysis import load, pairs, plot
from analysis.figures import payoff
from analysis.points import aggregate

MakeRun = Callable[..., Path]
ROOM = {"config.cluster.instances": 2, "config.cluster.kv_blocks": 10, "config.cluster.block_size_tokens": 16}
SIM = {"name": "sim"}


def table(**columns: Any) -> pd.DataFrame:
    """Requests that arrive one a second, wait nothing, and have 10 tokens of prompt and 20 of output."""
    size = len(next(iter(columns.values())))
    defaults = {
        "arrival_s": np.arange(float(size)),
        "first_token_s": np.arange(float(size)),
        "prompt_tokens": np.full(size, 10),
        "output_tokens": np.full(size, 20),
        "preemption_loss_s": np.zeros(size),
        "status": ["finished"] * size,
    }
    return pd.DataFrame(defaults | columns)


def test_usage_is_what_requests_hold_while_the_second_half_arrives() -> None:
    """Arrivals at 0, 1, 2 s: from 1 to 2 s the three hold 10 + 20 * 3/8, 10 + 20 * 1/8 and nothing of 320 tokens."""
    requests = table(end_s=[4.0, 5.0, 6.0])
    assert pairs.usage(ROOM, requests) == pytest.approx((10 + 7.5 + 10 + 2.5) / 320)


def test_preempted_and_unfinished_requests_hold_less() -> None:
    preempted = table(end_s=[4.0, 5.0, 6.0], preemption_loss_s=[2.0, 0.0, 0.0])
    assert pairs.usage(ROOM, preempted) == pytest.approx((17.5 / 2 + 12.5) / 320)
    rejected = table(end_s=[4.0, 5.0, 6.0], status=["rejected", "finished", "finished"])
    assert pairs.usage(ROOM, rejected) == pytest.approx(12.5 / 320)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=2, max_size=20), st.floats(0.5, 20))
def test_usage_is_the_integral_of_tokens_over_time(gaps: list[tuple[float, float]], scale: float) -> None:
    """Against sums over small steps of time; and a clock that runs `scale` times as fast changes nothing."""
    size = len(gaps)
    arrival = np.arange(float(size))
    first = arrival + [wait for wait, _ in gaps]
    end = first + [0.5 + decode for _, decode in gaps]
    requests = table(end_s=end, first_token_s=first, arrival_s=arrival)
    start, last = float(np.median(arrival)), float(arrival[-1])
    times = start + (np.arange(4_000) + 0.5) / 4_000 * (last - start)
    held = sum(
        np.where((times >= a) & (times < b), 10 + 20 * (times - a) / (b - a), 0)
        for a, b in zip(first, end, strict=True)
    )
    assert pairs.usage(ROOM, requests) == pytest.approx(np.mean(held) / 320, abs=5e-3)
    clock = {name: requests[name] * scale for name in ("arrival_s", "first_token_s", "end_s")}
    assert pairs.usage(ROOM, requests.assign(**clock)) == pytest.approx(pairs.usage(ROOM, requests))


def test_room_counts_requests_of_mean_length() -> None:
    assert pairs.room(ROOM, table(end_s=[1.0, 2.0])) == pytest.approx(160 / 30)


def test_spread_of_lengths_is_that_of_prompt_and_output_together() -> None:
    assert pairs.length_cv(table(end_s=[1.0, 2.0])) == 0
    assert pairs.length_cv(table(end_s=[1.0, 2.0], prompt_tokens=[0, 20])) == pytest.approx(10 / 30)


def test_the_wait_is_told_as_a_share_of_the_time_of_arrivals() -> None:
    requests = table(end_s=np.full(11, 20.0))  # 10 s of arrivals
    assert pairs.wait_share(requests.assign(first_token_s=requests["arrival_s"] + 0.5)) == pytest.approx(0.05)


@pytest.mark.parametrize(("room", "named"), [(3, 6), (8.8, 6), (8.9, 12), (25, 25), (36, 50), (130, 100), (160, 200)])
def test_rooms_are_put_into_classes_that_double(room: float, named: int) -> None:
    assert payoff._room_class(room) == named


@pytest.fixture
def make_pair_run(make_run: MakeRun) -> MakeRun:
    """A run of 40 requests of 32 tokens, each at rest for 10 s, whose latencies in summary.json are all `latency_s`."""

    def make(scheduler: str, latency_s: float, sha: str = "a", kv_blocks: int = 100, **others: Any) -> Path:
        summary = dict.fromkeys(payoff.METRICS.values(), latency_s)
        engine = others.pop("engine", SIM)
        wait_s = others.pop("wait_s", 0.0)
        view = others.pop("load_reports", "completed_step")
        gpu = others.pop("gpu", "A10")
        groups = others.pop("groups", {})
        scaling = others.pop("scaling", False)
        cluster = {
            "name": "two", "instances": 2, "kv_blocks": kv_blocks, "block_size_tokens": 16, "max_num_seqs": 256
        }  # fmt: skip
        directory = make_run(
            scheduler=scheduler, summary=summary, engine=engine, high_priority_fraction=0.0, **others,
            groups={
                "gpu": {"name": gpu.lower(), "label": gpu},
                "cluster": cluster,
                "scheduler": {
                    "name": {"Llumnix": "llumnix", "INFaaS++": "infaas"}[scheduler],
                    "label": scheduler,
                    "load_reports": view,
                    "scaling": {"enabled": scaling},
                },
                **groups,
            },
        )  # fmt: skip
        run = json.loads((directory / "run.json").read_text())
        run["workload"]["sha256"] = sha
        (directory / "run.json").write_text(json.dumps(run))
        arrival = np.arange(40.0)
        requests = table(end_s=arrival + wait_s + 10, first_token_s=arrival + wait_s).assign(
            prompt_tokens=32, output_tokens=0
        )
        pq.write_table(pa.Table.from_pandas(requests), directory / "requests.parquet")
        return directory

    return make


def samples(tmp_path: Path) -> pd.DataFrame:
    return payoff.samples(load.runs(tmp_path, "fig11"))


def test_a_pair_is_placed_by_its_run_without_migration(make_pair_run: MakeRun, tmp_path: Path) -> None:
    """1,600 tokens an instance, room for 50; 10 requests of 32 tokens at a time: 10 %."""
    make_pair_run("INFaaS++", 8.0)
    make_pair_run("Llumnix", 2.0, wait_s=30.0)
    found = samples(tmp_path)
    assert [*found["metric"]] == sorted([*payoff.METRICS, *payoff.PLACE])
    assert {*found["row"]} == {"2 x A10, LLaMA-7B, dispatch sees the last step"}
    assert {*found["series"]} == {"M-M, room 50"}
    assert {*found["x"]} == {0.0}
    values = found.set_index("metric")["value"]
    assert {*values[[*payoff.METRICS]]} == {2.0}
    assert dict(values[[*payoff.PLACE]]) == pytest.approx({"KV usage": 0.1, "Room": 50, "Length CV": 0}, abs=0.01)


@pytest.mark.parametrize(("kv_blocks", "usage"), [(25, 0.4), (16, 0.6), (12, 0.8)])
def test_usage_falls_into_the_class_below_it(
    make_pair_run: MakeRun, tmp_path: Path, kv_blocks: int, usage: float
) -> None:
    """160 of 400, 256 and 192 tokens an instance: 40, 62.5 and 83 %."""
    make_pair_run("INFaaS++", 8.0, kv_blocks=kv_blocks)
    make_pair_run("Llumnix", 2.0, kv_blocks=kv_blocks)
    assert {*samples(tmp_path)["x"]} == {usage}


@pytest.mark.parametrize(("wait_s", "x"), [(1.9, 0.0), (2.0, payoff.OVERLOAD)])
def test_overload_is_a_class_of_its_own(make_pair_run: MakeRun, tmp_path: Path, wait_s: float, x: float) -> None:
    """A twentieth of 39 s of arrivals is 1.95 s."""
    make_pair_run("INFaaS++", 8.0, wait_s=wait_s)
    make_pair_run("Llumnix", 2.0)
    assert {*samples(tmp_path)["x"]} == {x}


def test_all_seeds_of_a_rate_are_in_one_class(make_pair_run: MakeRun, tmp_path: Path) -> None:
    for seed, wait_s in enumerate((0.0, 0.0, 30.0)):
        make_pair_run("INFaaS++", 8.0, sha=str(seed), seed=seed, wait_s=wait_s)
        make_pair_run("Llumnix", 2.0, sha=str(seed), seed=seed)
    make_pair_run("INFaaS++", 8.0, sha="slow", qps=1.0)
    make_pair_run("Llumnix", 2.0, sha="slow", qps=1.0)
    of_seeds = samples(tmp_path)
    assert {*of_seeds.loc[of_seeds["replicate"].str.startswith("7.5"), "x"]} == {payoff.OVERLOAD}
    assert {*of_seeds.loc[of_seeds["replicate"].str.startswith("1."), "x"]} == {0.0}


def test_only_runs_of_the_same_requests_on_the_same_system_are_compared(make_pair_run: MakeRun, tmp_path: Path) -> None:
    make_pair_run("INFaaS++", 8.0)
    make_pair_run("Llumnix", 2.0, sha="other requests")
    make_pair_run("Llumnix", 2.0, load_reports="immediate")
    make_pair_run("Llumnix", 2.0, kv_blocks=200)
    assert samples(tmp_path).empty


def test_classes_have_the_geometric_mean_of_their_pairs(make_pair_run: MakeRun, tmp_path: Path) -> None:
    for seed, factor in enumerate((2.0, 8.0)):
        make_pair_run("INFaaS++", factor, sha=str(seed), seed=seed)
        make_pair_run("Llumnix", 1.0, sha=str(seed), seed=seed)
    points = aggregate(samples(tmp_path))
    assert {*points.loc[points["unit"] == payoff.UNIT, "value"]} == {2.0}
    assert {*points["n"]} == {2}
    text = payoff.report(points, ["A note."])
    assert "A note." in text
    assert "4x [" in text


def test_systems_are_compared_in_the_classes_that_both_have(make_pair_run: MakeRun, tmp_path: Path) -> None:
    for gpu, factors, kv_blocks in (("A10", (3.0, 5.0), 100), ("A10", (1.0, 1.1), 12), ("H100", (8.0, 7.0), 100)):
        for seed, factor in enumerate(factors):
            sha = f"{gpu}{seed}{kv_blocks}"
            make_pair_run("INFaaS++", factor, sha=sha, seed=seed, gpu=gpu, kv_blocks=kv_blocks)
            make_pair_run("Llumnix", 1.0, sha=sha, seed=seed, gpu=gpu, kv_blocks=kv_blocks)
    view = "LLaMA-7B, dispatch sees the last step"
    assert (
        f"TTFT P99, 2 x H100, {view} beside 2 x A10, {view}: intervals overlap in 1 of 1 classes; the 1 where either "
        "has more than 1.25x are 1.9x apart in the median, 1.9x at most."
    ) in payoff.report(aggregate(samples(tmp_path)), [])


def test_real_runs_stand_beside_the_map(make_pair_run: MakeRun, tmp_path: Path) -> None:
    for engine, sha in ((SIM, "a"), ({"name": "vllm"}, "b"), (SIM, "c")):
        make_pair_run("INFaaS++", 1.0, sha=sha, engine=engine)
        make_pair_run("Llumnix", 2.0, sha=sha, engine=engine)
    kept = tmp_path / "reference" / "validation" / "runs"
    kept.mkdir(parents=True)
    for directory in sorted((tmp_path / "fig11" / "runs").iterdir())[2:]:  # what is simulated there does not count
        directory.rename(kept / directory.name)
    found = samples(tmp_path)
    assert {*found["row"]} == {"2 x A10, LLaMA-7B, dispatch sees the last step", "2 x A10, LLaMA-7B, real engines"}
    assert len(found) == 2 * len([*payoff.METRICS, *payoff.PLACE])
    assert {*found.loc[found["unit"] == payoff.UNIT, "value"]} == {-1.0}


def test_pairs_whose_number_of_instances_changes_have_no_place_on_the_map(
    make_pair_run: MakeRun, tmp_path: Path
) -> None:
    for scheduler in ("INFaaS++", "Llumnix"):
        make_pair_run(scheduler, 1.0, scaling=True)
        make_pair_run(scheduler, 1.0, sha="b", arrivals={"name": "gamma"})
    assert samples(tmp_path).empty


def test_real_pairs_name_the_file_that_they_served_and_their_part_of_a_gpu(
    make_pair_run: MakeRun, tmp_path: Path
) -> None:
    """No map has a column for a file that was served by real engines only."""
    half = {"name": "vllm", "num_gpus": 0.5}
    served = {"trace": {"name": "file", "label": "", "path": "traces/azure.csv"}}
    for scheduler in ("INFaaS++", "Llumnix"):
        make_pair_run(scheduler, 1.0)
        make_pair_run(scheduler, 1.0, sha="b", engine=half, groups=served, arrivals={"name": "recorded"})
    found = samples(tmp_path)
    real = found[found["row"] == "2 x A10, 2 per GPU, LLaMA-7B, real engines"]
    assert {*real["series"]} == {"azure, room 50"}
    figure = payoff.draw(aggregate(found), pd.DataFrame(), set())
    assert [ax.get_title().splitlines()[1] for ax in figure.axes if ax.get_title()] == [
        "2 x A10, LLaMA-7B, dispatch sees the last step"
    ]


def test_the_figure_has_a_map_per_system_and_distribution(make_pair_run: MakeRun, tmp_path: Path) -> None:
    for trace, kv_blocks in (("M-M", 100), ("M-M", 12), ("S-S", 100)):
        make_pair_run("INFaaS++", 8.0, sha=f"{trace}{kv_blocks}", trace=trace, kv_blocks=kv_blocks)
        make_pair_run("Llumnix", 2.0, sha=f"{trace}{kv_blocks}", trace=trace, kv_blocks=kv_blocks)
    figure = payoff.draw(aggregate(samples(tmp_path)), pd.DataFrame(), set())
    assert isinstance(figure, Figure)
    maps = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title().splitlines()[0] for ax in maps] == [f"{name} (CV of lengths 0.0)" for name in ("M-M", "S-S")]
    assert [label.get_text() for label in maps[0].get_yticklabels()] == ["6", "50"]
    assert [text.get_text() for text in maps[0].texts] == ["4x", "4.00x", "4x", "4.00x"]


def test_both_views_are_drawn_of_the_largest_system_only() -> None:
    last, present = payoff.VIEWS.values()
    systems = [f"A, {present}", f"A, {last}", f"B, {present}", f"B, {last}", f"C, {last}", f"D, {payoff.REAL}"]
    assert payoff._drawn(systems) == [systems[i] for i in (0, 1, 2, 4, 5)]


def test_plot_knows_it_and_says_how_to_make_its_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        plot.main(["fig=payoff", f"outputs={tmp_path}"])
    assert stopped.value.code == 2
    assert "python -m runners.serve experiment=payoff" in capsys.readouterr().err
