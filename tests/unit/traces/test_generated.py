"""The artifact's recipe: value for value its golden file, and so Table 1."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest

from llumnix.errors import ConfigError
from llumnix.traces import GeneratedTrace, Stream
from llumnix.traces.statistics import length_statistics
from llumnix.traces.table1 import TABLE_1

MEANS = {"S-S": (128, 128), "M-M": (256, 256), "L-L": (512, 512), "S-L": (128, 512), "L-S": (512, 128)}
# Sums of 10,000 prompts and outputs, from the facts published with the recipe.
SUMS = {"S-S": (1_280_134, 1_277_840), "M-M": (2_537_239, 2_546_881), "L-L": (5_126_595, 5_124_421)}


def make(label: str, **options: object) -> GeneratedTrace:
    prompt, output = MEANS[label]
    return GeneratedTrace(
        name=label.lower().replace("-", "_"),
        label=label,
        mean_prompt_tokens=prompt,
        mean_output_tokens=output,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("label", MEANS)
def test_lengths_equal_the_golden_file(label: str, real_traces: Path) -> None:
    golden = real_traces / "llumnix_artifact_zipf_lengths_seed0xCADE_n10000.csv.gz"
    if not golden.exists():
        pytest.skip(f"{golden.name} is not at hand")
    with gzip.open(golden, "rt", newline="") as text:
        rows = list(csv.DictReader(text))
    trace = make(label)
    lengths = trace.draw(10_000, trace.streams(0))
    assert lengths.prompt_tokens.tolist() == [int(row[f"{label}_in"]) for row in rows]
    assert lengths.output_tokens.tolist() == [int(row[f"{label}_out"]) for row in rows]


@pytest.mark.parametrize("label", SUMS)
def test_sums_are_the_published_ones(label: str) -> None:
    trace = make(label)
    lengths = trace.draw(10_000, trace.streams(0))
    assert (lengths.prompt_tokens.sum(), lengths.output_tokens.sum()) == SUMS[label]


@pytest.mark.parametrize("label", MEANS)
def test_prompts_have_the_percentiles_of_table_1(label: str) -> None:
    trace = make(label)
    paper = TABLE_1[trace.name][0]
    measured = length_statistics(trace.draw(10_000, trace.streams(0)).prompt_tokens)
    assert [round(value) for value in (measured.p50, measured.p80, measured.p95, measured.p99)] == list(paper[1:])
    # The published mean is the one before the cap.
    assert measured.mean == pytest.approx(paper.mean, rel=0.01)


def test_lengths_stay_below_the_cap() -> None:
    trace = make("L-L", max_tokens=1000)
    lengths = trace.draw(5000, trace.streams(3))
    assert lengths.prompt_tokens.max() == lengths.output_tokens.max() == 1000
    assert lengths.prompt_tokens.min() >= 1


def test_artifact_arrivals_continue_the_stream_of_the_lengths() -> None:
    streams = make("M-M").streams(0)
    assert streams.lengths is streams.arrivals


def test_independent_arrivals_do_not_depend_on_the_lengths() -> None:
    trace = make("M-M", stream=Stream.independent)
    untouched, used = trace.streams(5), trace.streams(5)
    trace.draw(1000, used)
    assert untouched.arrivals.exponential(1.0) == used.arrivals.exponential(1.0)


@pytest.mark.parametrize("stream", list(Stream))
def test_a_new_seed_gives_new_lengths(stream: Stream) -> None:
    trace = make("M-M", stream=stream)
    draws = [trace.draw(1000, trace.streams(seed)).prompt_tokens for seed in (0, 0, 1, 2)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[2], draws[3])


def test_a_mean_without_an_exponent_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mean_prompt_tokens must be one of 128, 256, 512, 1024.*got 300"):
        GeneratedTrace(name="x", mean_prompt_tokens=300, mean_output_tokens=256)
    with pytest.raises(ConfigError, match="max_tokens must be at least 1, got 0"):
        GeneratedTrace(name="x", mean_prompt_tokens=256, mean_output_tokens=256, max_tokens=0)


@pytest.mark.parametrize("qps", [0.0, -1.0, float("nan"), float("inf")])
def test_published_rates_must_be_positive(qps: float) -> None:
    with pytest.raises(ConfigError, match="paper_qps must hold positive rates"):
        make("M-M", paper_qps=[qps])
