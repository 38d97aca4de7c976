"""The stand-in for a data set that is not at hand: percentiles of Table 1, labelled as synthetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from llumnix.errors import ConfigError
from llumnix.traces import QuantileTable, QuantileTrace
from llumnix.traces.quantile import paired_levels
from llumnix.traces.statistics import length_statistics, rank_correlation
from llumnix.traces.table1 import TABLE_1, PaperRow

CONF = Path(__file__).parents[3] / "conf" / "trace"


def from_yaml(name: str, **changes: object) -> QuantileTrace:
    values = OmegaConf.load(CONF / f"{name}.yaml")
    del values["defaults"]
    trace = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(QuantileTrace), values, changes))
    assert isinstance(trace, QuantileTrace)
    return trace


def deviations(tokens: np.ndarray, paper: PaperRow) -> list[float]:
    measured = length_statistics(tokens)
    pairs = zip((measured.mean, measured.p50, measured.p80, measured.p95, measured.p99), paper, strict=True)
    return [abs(ours / theirs - 1) for ours, theirs in pairs]


@pytest.mark.parametrize("name", ["sharegpt", "burstgpt"])
@pytest.mark.parametrize("seed", [0, 1])
def test_stratified_lengths_match_table_1(name: str, seed: int) -> None:
    trace = from_yaml(name)
    lengths = trace.draw(10_000, trace.streams(seed))
    for tokens, paper in zip((lengths.prompt_tokens, lengths.output_tokens), TABLE_1[name], strict=True):
        assert max(deviations(tokens, paper)) < 0.005


@pytest.mark.parametrize("name", ["sharegpt", "burstgpt"])
def test_freely_drawn_lengths_match_table_1_within_sampling_error(name: str) -> None:
    trace = from_yaml(name, stratified=False)
    lengths = trace.draw(10_000, trace.streams(0))
    for tokens, paper in zip((lengths.prompt_tokens, lengths.output_tokens), TABLE_1[name], strict=True):
        tolerances = (0.05, 0.05, 0.07, 0.05, 0.06)  # the P80 of ShareGPT's prompts has a standard error of 2.4 %
        assert all(off < most for off, most in zip(deviations(tokens, paper), tolerances, strict=True))


@pytest.mark.parametrize("name", ["sharegpt", "burstgpt"])
def test_the_label_says_that_lengths_are_synthetic(name: str) -> None:
    trace = from_yaml(name)
    lengths = trace.draw(10, trace.streams(0))
    assert lengths.synthetic
    assert lengths.label == f"{trace.label} (synthetic, Table-1-shaped)"


@pytest.mark.parametrize("fraction", [0.0, 0.04, 0.5])
def test_failed_calls_are_one_token_each_way_and_the_lowest_lengths_of_the_tables(fraction: float) -> None:
    trace = from_yaml("burstgpt", failed_fraction=fraction)
    lengths = trace.draw(1000, trace.streams(0))
    failed = (lengths.prompt_tokens == 1) & (lengths.output_tokens == 1)
    assert failed.sum() == round(1000 * fraction)
    levels = fraction + (1 - fraction) * (np.arange(1000 - failed.sum()) + 0.5) / (1000 - failed.sum())
    assert np.array_equal(np.sort(lengths.prompt_tokens[~failed]), trace.prompt.tokens(levels))
    assert np.array_equal(np.sort(lengths.output_tokens[~failed]), trace.output.tokens(levels))
    with pytest.raises(ConfigError, match=r"failed_fraction must lie in \[0, 1\), got 1"):
        from_yaml("burstgpt", failed_fraction=1)


def test_a_path_reads_the_real_file_under_the_plain_label(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,GPT-4,10,20,30,Conversation log\n"
        "6,ChatGPT,11,21,32,Conversation log\n"
        "7,GPT-4,12,22,34,API log\n"
        "8,GPT-4,9000,23,9023,Conversation log\n"
    )
    trace = from_yaml("burstgpt", path=str(path))
    lengths = trace.draw(100, trace.streams(0))
    assert (lengths.label, lengths.synthetic, lengths.rows_in) == ("BurstGPT", False, 4)
    assert sorted(lengths.prompt_tokens.tolist()) == [10, 6144]
    assert lengths.dropped == {"other model": 1, "other log type": 1}


@settings(max_examples=25, deadline=None)
@given(rho=st.floats(-0.9, 0.9), seed=st.integers(0, 100), stratified=st.booleans())
def test_levels_have_the_rank_correlation_asked_for(rho: float, seed: int, stratified: bool) -> None:
    first, second = paired_levels(4000, rho, stratified, np.random.default_rng(seed))
    measured = rank_correlation((first * 1e9).astype(np.int64), (second * 1e9).astype(np.int64))
    assert measured == pytest.approx(rho, abs=0.08)
    for levels in (first, second):
        assert 0 < levels.min() < levels.max() < 1
        if stratified:
            assert np.array_equal(np.sort(levels), (np.arange(4000) + 0.5) / 4000)


@settings(max_examples=50, deadline=None)
@given(
    points=st.lists(st.integers(1, 10**5), min_size=6, max_size=6, unique=True).map(sorted),
    bend=st.one_of(st.just(0.0), st.floats(-1, 1).filter(lambda bend: abs(bend) > 0.01)),
)
def test_lengths_pass_through_the_points_and_never_decrease(points: list[int], bend: float) -> None:
    lower, p50, p80, p95, p99, upper = points
    table = QuantileTable(lower=lower, p50=p50, p80=p80, p95=p95, p99=p99, upper=upper, box_cox_lambda=bend)
    assert table.tokens(np.array([0, 0.5, 0.8, 0.95, 0.99, 1])).tolist() == points
    assert (np.diff(table.tokens(np.linspace(0, 1, 500))) >= 0).all()


def test_tables_and_correlations_out_of_range_are_refused() -> None:
    good = {"lower": 1, "p50": 2, "p80": 3, "p95": 4, "p99": 5, "upper": 6, "box_cox_lambda": 0.5}
    for bad in ({"p80": 2}, {"lower": 0}, {"upper": float("nan")}, {"box_cox_lambda": float("nan")}):
        with pytest.raises(ConfigError, match="length table must be"):
            QuantileTable(**{**good, **bad})
    with pytest.raises(ConfigError, match="rank_correlation must lie between -1 and 1, got 1"):
        from_yaml("sharegpt", rank_correlation=1.0)
