"""How close the simulated cluster comes to the paper: `python -m benchmarks.parity [csv=PATH] [rows=M-M,S-L] [worst=9]`

The error of a point is |ln(sim / paper)|: 0.05 is 5 %, 0.69 a factor of 2. A preemption loss within 0.1 s of the
paper's has error 0: a handful of preemptions decides such values. A median or percentile must not exceed ln(1 + 4 %)
or ln(1.8), and a point is "within 25 %" if its error is at most ln(1.25), which is the stricter way to read them.
Exit 1 if a threshold is missed or a published point was not simulated, 2 if there is nothing to compare.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from analysis import words
from analysis.load import OUTPUTS
from analysis.points import KEY, paper_points

ALLOWANCE = {"Preemption Loss": 0.1}
"""Metric -> absolute difference, in the metric's unit, that counts as no error."""

THRESHOLDS: dict[str, dict[str, tuple[float, float]]] = {
    "fig11": {
        "Request Mean": (1.04, 1.10),
        "Request P99": (1.05, 1.20),
        "Decode Mean": (1.04, 1.12),
        "Decode P99": (1.07, 1.18),
        "Prefill Mean": (1.17, 1.8),
        "Prefill P99": (1.30, 2.1),
        "Preemption Loss": (1.30, 2.3),
    },
}
"""Figure -> metric -> the largest factor allowed for the median and for the 90th percentile of points."""

SHARES: dict[str, dict[float, float]] = {"fig11": {1.10: 0.50, 1.25: 0.75, 2.0: 0.95}}
"""Figure -> factor -> the smallest allowed share of all points within it."""

CLEAR_GAP = 0.05
"""The order of two series counts where the paper's differ by more than this share."""


def compare(points: pd.DataFrame, paper: pd.DataFrame) -> pd.DataFrame:
    """Join simulated points (columns of figNN.csv) with published ones: one row per published point.

    Adds `sim`, `paper`, `log_ratio` = ln(sim / paper) and `error` = |log_ratio| after the allowance; all three are NaN
    where the point was not simulated.
    """
    ours = points[[*KEY, "value"]].rename(columns={"value": "sim"})
    joined = paper.rename(columns={"value": "paper"}).merge(ours, on=KEY, how="left", validate="one_to_one")
    with np.errstate(divide="ignore"):
        joined["log_ratio"] = np.log(joined["sim"] / joined["paper"])
    allowed = joined["metric"].map(ALLOWANCE).fillna(0.0)
    near = (joined["sim"] - joined["paper"]).abs() <= allowed
    return joined.assign(error=joined["log_ratio"].abs().mask(near, 0.0))


def summarize(compared: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Median and 90th percentile of the error, median signed log ratio and count, per group of simulated points."""
    simulated = compared.dropna(subset="error")
    groups = simulated.groupby(list(by), sort=False)
    return pd.DataFrame(
        {
            "median": groups["error"].median(),
            "p90": groups["error"].quantile(0.9),
            "signed": groups["log_ratio"].median(),
            "points": groups.size(),
        }
    )


def shares(compared: pd.DataFrame, factors: Sequence[float]) -> dict[float, float]:
    """Factor -> share of all published points whose error is within it; a point that was not simulated is not."""
    return {factor: float((compared["error"] <= np.log(factor)).mean()) for factor in factors}


def missed(compared: pd.DataFrame, figure: str) -> list[str]:
    """The thresholds that these points do not meet, one sentence each; [] if all are met."""
    found = []
    by_metric = summarize(compared, ["metric"])
    for metric, (median, p90) in THRESHOLDS[figure].items():
        if metric in by_metric.index:
            for name, limit in (("median", median), ("p90", p90)):
                value = by_metric.loc[metric, name]
                if value > np.log(limit):
                    found.append(f"{metric}: {name} {value:.3f} exceeds ln({limit:g}) = {np.log(limit):.3f}.")
    for factor, share in shares(compared, list(SHARES[figure])).items():
        if share < SHARES[figure][factor]:
            found.append(f"{share:.1%} of the points are within {factor:g}x, {SHARES[figure][factor]:.0%} must be.")
    if absent := int(compared["sim"].isna().sum()):
        found.append(f"{absent} of {len(compared)} published points were not simulated.")
    return found


def disordered(compared: pd.DataFrame, better: str, worse: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Points at which the paper has `better` clearly below `worse` (CLEAR_GAP) and the simulation has not."""
    wide = compared[compared["metric"].isin(metrics)].pivot_table(
        index=["row", "metric", "x"], columns="series", values=["sim", "paper"], sort=False
    )
    clear = wide["paper"][better] < (1 - CLEAR_GAP) * wide["paper"][worse]
    return wide[clear & (wide["sim"][better] > wide["sim"][worse])]


def _print(compared: pd.DataFrame, figure: str, worst: int) -> None:
    console = words.console()
    limits = THRESHOLDS[figure]
    metrics = list(limits)
    console.print(f"{figure}: median / 90th percentile of |ln(sim/paper)| (signed median where beyond 0.05)")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", *metrics):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    whole = summarize(compared, ["metric"])
    table.add_row("required", *(f"{np.log(limits[m][0]):.3f}/{np.log(limits[m][1]):.2f}" for m in metrics))
    table.add_row("all", *(_entry(whole, m) for m in metrics))
    table.add_row("", *(_judged(whole, m, limits) for m in metrics))
    for name in ("row", "series"):
        parts = summarize(compared, [name, "metric"])
        for value in compared[name].drop_duplicates():
            table.add_row(value, *(_entry(parts, (value, m)) for m in metrics))
    console.print(table)
    as_read = compared.assign(error=compared["log_ratio"].abs())
    strict = shares(as_read, list(SHARES[figure]))
    console.print(f"\nall {len(compared)} points (in brackets: without the allowance of 0.1 s for preemption loss)")
    for factor, share in shares(compared, list(SHARES[figure])).items():
        required = SHARES[figure][factor]
        verdict = "pass" if share >= required else "FAIL"
        console.print(f"  within {factor:g}x: {share:6.1%} ({strict[factor]:.1%}), required {required:.0%}: {verdict}")
    console.print(f"\nthe {worst} worst points")
    for point in compared.dropna(subset="error").nlargest(worst, "error").itertuples():
        where = f"{point.row} {point.metric} {point.series} @ {point.x:g}"
        console.print(f"  {where:<42} sim {point.sim:9.4f}  paper {point.paper:9.4f}  ln {point.log_ratio:+.2f}")
    swapped = disordered(compared, "Llumnix", "INFaaS++", ["Request Mean", "Prefill Mean"])
    console.print(
        f"\nLlumnix above INFaaS++ where the paper has it more than 5 % below, in means: {len(swapped)} points"
    )
    for row, metric, x in swapped.index:
        console.print(f"  {row} {metric} @ {x:g}")


def _entry(summary: pd.DataFrame, key: object) -> str:
    if key not in summary.index:
        return "-"
    found = summary.loc[key]
    bias = f"({found['signed']:+.2f})" if abs(found["signed"]) > 0.05 else ""
    return f"{found['median']:.3f}/{found['p90']:.2f}{bias}"


def _judged(summary: pd.DataFrame, metric: str, limits: Mapping[str, tuple[float, float]]) -> str:
    if metric not in summary.index:
        return "-"
    met = [
        summary.loc[metric, name] <= np.log(limit)
        for name, limit in zip(("median", "p90"), limits[metric], strict=True)
    ]
    return "/".join("pass" if each else "FAIL" for each in met)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare one figure's CSV with the paper, print where they differ; the exit code says whether it is close."""
    about = "Compare the points of a figure with the paper's; exit 1 if a threshold is missed."
    examples = "examples:\n  python -m benchmarks.parity\n  python -m benchmarks.parity rows=S-S worst=30"
    asked = words.parse(argv, "benchmarks.parity", ["fig", "csv", "rows", "worst"], about, examples)
    figure = f"fig{asked.get('fig', '11')}"
    if figure not in THRESHOLDS:
        words.stop(f"fig={asked['fig']} has no thresholds; choose among: {', '.join(THRESHOLDS)}.")
    path = Path(asked.get("csv", OUTPUTS / figure / "figures" / f"{figure}.csv"))
    if not path.is_file():
        words.stop(f"There is no {path}; make it with: python -m analysis.plot fig={figure.removeprefix('fig')}")
    paper = paper_points(figure)
    rows = asked.get("rows", ",".join(paper["row"].unique())).split(",")
    if unknown := sorted({*rows} - {*paper["row"]}):
        words.stop(f"rows={','.join(unknown)} not in {figure}; choose among: {', '.join(paper['row'].unique())}.")
    if not asked.get("worst", "15").isdigit():
        words.stop(f"worst={asked['worst']} is not a count of points.")
    compared = compare(pd.read_csv(path), paper[paper["row"].isin(rows)])
    _print(compared, figure, int(asked.get("worst", "15")))
    failures = missed(compared, figure)
    sys.stdout.write("\n" + ("\n".join(failures) if failures else "All thresholds are met.") + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
