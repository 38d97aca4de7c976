"""Workloads: the artifact's own arrivals, determinism, repeats, priorities, and what is refused."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.arrivals import Arrivals, Burst, Gamma, Poisson, Uniform
from llumnix.errors import ConfigError
from llumnix.request import Priority, Workload
from llumnix.traces import GeneratedTrace, QuantileTable, QuantileTrace, Stream, Trace
from llumnix.workload import REPEAT_JITTER_S, build

ROOT = Path(__file__).parents[2]


def generated(prompt: int = 256, output: int = 256, stream: Stream = Stream.artifact) -> GeneratedTrace:
    return GeneratedTrace(
        name="generated", label="G", mean_prompt_tokens=prompt, mean_output_tokens=output, stream=stream
    )


def quantile(stream: Stream = Stream.artifact) -> QuantileTrace:
    table = QuantileTable(lower=1, p50=10, p80=20, p95=40, p99=80, upper=160, box_cox_lambda=0.5)
    return QuantileTrace(name="quantile", label="Q", prompt=table, output=table, stream=stream)


def make(trace: Trace | None = None, arrivals: Arrivals | None = None, **changes: Any) -> Workload:
    options: dict[str, Any] = {
        "qps": 7.4, "cv": 1.0, "seed": 0, "repeat": 0, "num_requests": 1000, "high_priority_fraction": 0.0,
    }  # fmt: skip
    return build(trace or generated(), arrivals or Poisson(), **{**options, **changes})


# Time in s of the last of 10,000 sends by the artifact's client, its sleeps taken as exact.
@pytest.mark.parametrize(
    ("prompt", "output", "qps", "span_s"),
    [
        (128, 128, 32, 315.8),
        (256, 256, 7.4, 1365.7),
        (512, 512, 2.6, 3886.9),
        (128, 512, 4.1, 2464.9),
        (512, 128, 10, 1010.6),
    ],
)
def test_poisson_arrivals_are_those_of_the_artifact(prompt: int, output: int, qps: float, span_s: float) -> None:
    workload = make(generated(prompt, output), qps=qps, num_requests=10_000)
    assert workload.arrival_s[0] == 0
    assert workload.arrival_s[-1] == pytest.approx(span_s, abs=0.1)


@pytest.mark.parametrize(
    ("mean", "qps", "cv", "span_s"),
    [(128, 26, 2, 387.8), (128, 26, 8, 433.7), (512, 2, 2, 5040.8), (512, 2, 6, 5218.6)],
)
def test_gamma_arrivals_are_those_of_the_artifact(mean: int, qps: float, cv: float, span_s: float) -> None:
    workload = make(generated(mean, mean), Gamma(), qps=qps, cv=cv, num_requests=10_000)
    assert workload.arrival_s[-1] == pytest.approx(span_s, abs=0.1)


def test_the_rate_only_scales_the_gaps_of_the_artifact() -> None:
    slow, fast = make(qps=1), make(qps=4)
    assert np.array_equal(slow.prompt_tokens, fast.prompt_tokens)
    assert slow.arrival_s == pytest.approx(fast.arrival_s * 4)


@settings(max_examples=40, deadline=None)
@given(
    trace=st.sampled_from(
        [generated(), generated(stream=Stream.independent), quantile(), quantile(Stream.independent)]
    ),
    arrivals=st.sampled_from([Poisson(), Gamma(), Uniform(), Burst()]),
    seed=st.integers(0, 1000),
    repeat=st.integers(0, 5),
    num_requests=st.integers(1, 300),
    fraction=st.floats(0, 1),
)
def test_every_workload_is_whole_sorted_and_reproducible(
    trace: Trace, arrivals: Arrivals, seed: int, repeat: int, num_requests: int, fraction: float
) -> None:
    options = {
        "seed": seed, "repeat": repeat, "num_requests": num_requests, "high_priority_fraction": fraction, "cv": 2.0,
    }  # fmt: skip
    first, again = (make(trace, arrivals, **options) for _ in range(2))
    assert first.arrival_s.tobytes() == again.arrival_s.tobytes()
    assert first.prompt_tokens.tobytes() == again.prompt_tokens.tobytes()
    assert first.output_tokens.tobytes() == again.output_tokens.tobytes()
    assert first.priority.tobytes() == again.priority.tobytes()
    assert first.sha256 == again.sha256
    assert len(first) == len(first.prompt_tokens) == len(first.output_tokens) == len(first.priority) == num_requests
    assert first.rows_in == len(first) + sum(first.dropped.values())
    assert (first.arrival_s >= 0).all()
    assert (np.diff(first.arrival_s) >= 0).all()
    assert min(first.prompt_tokens.min(), first.output_tokens.min()) >= 1


@pytest.mark.parametrize("trace", [generated(), generated(stream=Stream.independent), quantile()])
def test_a_new_seed_changes_lengths_arrivals_and_priorities(trace: Trace) -> None:
    first, second = (make(trace, seed=seed, high_priority_fraction=0.5) for seed in (0, 1))
    assert not np.array_equal(first.prompt_tokens, second.prompt_tokens)
    assert not np.array_equal(first.arrival_s, second.arrival_s)
    assert not np.array_equal(first.priority, second.priority)
    assert first.sha256 != second.sha256


def test_a_repeat_moves_arrivals_by_milliseconds_keeps_lengths_and_draws_the_classes_anew() -> None:
    base, first, second = (make(repeat=repeat, num_requests=10_000, high_priority_fraction=0.3) for repeat in range(3))
    for other in (first, second):
        assert np.array_equal(base.prompt_tokens, other.prompt_tokens)
        assert np.array_equal(base.output_tokens, other.output_tokens)
        assert not np.array_equal(base.priority, other.priority)
        assert other.priority.mean() == pytest.approx(0.3, abs=0.02)
        moved = other.arrival_s - base.arrival_s
        assert 0.5 * REPEAT_JITTER_S < moved.std() < 1.1 * REPEAT_JITTER_S
        assert abs(moved).max() < 8 * REPEAT_JITTER_S
    assert not np.array_equal(first.arrival_s, second.arrival_s)


def test_the_artifact_draws_the_classes_after_the_token_ids_and_a_number_for_each_session() -> None:
    trace = replace(generated(), class_stream=Stream.artifact)
    workloads = [make(trace, num_requests=300, high_priority_fraction=0.3, repeat=repeat) for repeat in (0, 1)]
    python = random.Random(0xCADE)
    for tokens in workloads[0].prompt_tokens:
        for _ in range(tokens):
            python.randint(10, 32000)
    for _ in range(300):
        python.random()
    expected = [python.random() < 0.3 for _ in range(300)]
    for workload in workloads:
        assert (workload.priority == Priority.HIGH).tolist() == expected


def test_the_classes_of_figure_13_have_the_lengths_that_its_points_show() -> None:
    trace = replace(generated(128, 128), class_stream=Stream.artifact)
    workload = make(trace, num_requests=10_000, high_priority_fraction=0.1)
    high = workload.priority == Priority.HIGH
    assert high.sum() == 1022
    # Llumnix-base is blind to the classes, so decode execution times are as output lengths are: 0.949 to 0.959.
    ratio = workload.output_tokens[high].mean() / workload.output_tokens[~high].mean()
    assert ratio == pytest.approx(0.944, abs=0.001)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"trace": generated()}])
def test_other_seeds_and_streams_have_classes_of_their_own_in_each_repeat(changes: dict[str, Any]) -> None:
    options = {"trace": replace(generated(), class_stream=Stream.artifact), "high_priority_fraction": 0.5, **changes}
    first, second = (make(**options, repeat=repeat) for repeat in (0, 1))
    assert not np.array_equal(first.priority, second.priority)


def test_priorities_have_their_own_generator() -> None:
    none, some, all_high = (make(num_requests=10_000, high_priority_fraction=share) for share in (0.0, 0.1, 1.0))
    assert np.array_equal(none.arrival_s, some.arrival_s)
    assert (none.priority == Priority.NORMAL).all()
    assert (all_high.priority == Priority.HIGH).all()
    assert (some.priority == Priority.HIGH).mean() == pytest.approx(0.1, abs=0.01)


def test_real_data_sets_get_the_arrivals_that_open_the_artifacts_stream() -> None:
    expected = np.random.RandomState(0xCADE).exponential(1 / 7.4, 1000)
    assert np.diff(make(quantile()).arrival_s) == pytest.approx(expected[:-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed must be 0 or larger, got -1"),
        ({"repeat": -1}, "repeat must be 0 or larger, got -1"),
        ({"num_requests": 0}, "num_requests must be at least 1, got 0"),
        ({"high_priority_fraction": 1.5}, "high_priority_fraction must lie between 0 and 1, got 1.5"),
        ({"high_priority_fraction": float("nan")}, "high_priority_fraction must lie between 0 and 1, got nan"),
        ({"qps": 0.0}, "qps must be a positive number"),
        ({"qps": float("nan")}, "qps must be a positive number"),
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_a_workload_of_generated_lengths_imports_nothing_heavy() -> None:
    code = (
        "import sys; from llumnix.workload import build; from llumnix.arrivals import Poisson; "
        "from llumnix.traces import GeneratedTrace as G; "
        "build(G(name='m', mean_prompt_tokens=256, mean_output_tokens=256), Poisson(), qps=7, cv=1, seed=0, repeat=0, "
        "num_requests=10, high_priority_fraction=0); "
        "print([name for name in ('scipy', 'pandas', 'pyarrow', 'matplotlib', 'ray', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
