"""Each option under conf/trace and conf/arrivals fits its dataclass and holds what the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from llumnix import arrivals, traces
from llumnix.traces.table1 import TABLE_1

CONF = Path(__file__).parents[3] / "conf"
SCHEMAS = {
    "schema/trace/generated": traces.GeneratedTrace,
    "schema/trace/quantile": traces.QuantileTrace,
    "schema/trace/fixed": traces.FixedTrace,
    "schema/trace/file": traces.FileTrace,
    "schema/trace/superposed": traces.SuperposedTrace,
    "schema/arrivals/poisson": arrivals.Poisson,
    "schema/arrivals/gamma": arrivals.Gamma,
    "schema/arrivals/uniform": arrivals.Uniform,
    "schema/arrivals/burst": arrivals.Burst,
    "schema/arrivals/recorded": arrivals.Recorded,
}
OPTIONS = sorted([*CONF.glob("trace/*.yaml"), *CONF.glob("arrivals/*.yaml")])
PAPER_QPS = {
    "sharegpt": [7, 7.25, 7.5, 7.75, 8],
    "burstgpt": [7.5, 7.75, 8, 8.25, 8.5],
    "s_s": [32, 33, 34, 35, 36],
    "m_m": [7.4, 7.5, 7.6, 7.7, 7.8],
    "l_l": [2.6, 2.7, 2.8, 2.9, 3.0],
    "s_l": [4.1, 4.15, 4.2, 4.25, 4.3],
    "l_s": [10, 12, 14, 16, 18],
}


def load(option: Path, /, **changes: object) -> traces.Trace | arrivals.Arrivals:
    made = OmegaConf.to_object(OmegaConf.merge(composed(option), changes))
    assert isinstance(made, traces.Trace | arrivals.Arrivals)
    return made


def composed(option: Path) -> DictConfig:
    """The option on top of its schema, or of the option that it changes."""
    values = OmegaConf.load(option)
    base = values.defaults[0].removeprefix("/").removesuffix("@_here_")
    del values["defaults"]
    below = OmegaConf.structured(SCHEMAS[base]) if base in SCHEMAS else composed(option.with_name(f"{base}.yaml"))
    merged = OmegaConf.merge(below, values)
    assert isinstance(merged, DictConfig)
    return merged


def test_all_traces_of_figure_11_are_there() -> None:
    assert {path.stem for path in OPTIONS if path.parent.name == "trace"} >= {*TABLE_1, "file"}
    assert set(PAPER_QPS) == set(TABLE_1)


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_option_fits_its_schema_and_bears_its_name(path: Path) -> None:
    changes = {"path": "some.csv"} if path.stem in ("file", "superposed") else {}
    assert load(path, **changes).name == path.stem


@pytest.mark.parametrize("name", PAPER_QPS)
def test_rates_and_thresholds_are_those_of_figure_11(name: str) -> None:
    trace = load(CONF / "trace" / f"{name}.yaml")
    assert isinstance(trace, traces.Trace)
    assert trace.paper_qps == PAPER_QPS[name]
    assert trace.migrate_threshold_blocks == (10 if name in {"m_m", "s_l"} else 3)
    assert trace.stream is traces.Stream.artifact


@pytest.mark.parametrize("name", ["sharegpt", "sharegpt_6k", "burstgpt"])
def test_percentile_tables_are_those_of_table_1(name: str) -> None:
    trace = load(CONF / "trace" / f"{name}.yaml")
    assert isinstance(trace, traces.QuantileTrace)
    for table, paper in zip((trace.prompt, trace.output), TABLE_1[name.removesuffix("_6k")], strict=True):
        assert [table.p50, table.p80, table.p95, table.p99] == list(paper[1:])


@pytest.mark.parametrize(("name", "longest"), [("sharegpt", 11_200), ("sharegpt_6k", 6144), ("burstgpt", 6144)])
def test_the_stand_ins_of_the_published_stream_fit_the_testbed(name: str, longest: int) -> None:
    trace = load(CONF / "trace" / f"{name}.yaml")
    assert isinstance(trace, traces.QuantileTrace)
    lengths = trace.draw(10_000, trace.streams(0))
    assert 0.9 * longest < lengths.prompt_tokens.max() <= longest
    # 783 blocks of 16 tokens, less the watermark: none is rejected
    assert (lengths.prompt_tokens + lengths.output_tokens).max() <= (783 - 7) * 16
    for tokens, paper in zip(
        (lengths.prompt_tokens, lengths.output_tokens), TABLE_1[name.removesuffix("_6k")], strict=True
    ):
        assert tokens.mean() == pytest.approx(paper.mean, rel=0.005)
