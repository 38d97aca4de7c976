"""How close the simulated cluster comes to the paper: `python -m benchmarks.parity [fig=11] [csv=PATH] [rows=M-M,S-L]`

The error of a point is |ln(sim / paper)|: 0.05 is 5 %, 0.69 a factor of 2. A preemption loss within 0.1 s of the
paper's has error 0: a handful of preemptions decides such values. A median or percentile must not exceed ln(1 + 4 %)
or ln(1.8), and a point is "within 25 %" if its error is at most ln(1.25), which is the stricter way to read them. No
coefficient was fitted on Figures 13, 14 and 15, and Figure 10 has some that were fitted on it alone; of Figure 13 the
ratios of the two series are judged.
Exit 1 if a threshold is missed or a published point was not simulated, 2 if there is nothing to compare.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
from rich.table import Table

from analysis import words
from analysis.load import OUTPUTS
from analysis.points import KEY, paper_points

ALLOWANCE = {"Preemption Loss": 0.1}
"""Metric -> absolute difference, in the metric's unit, that counts as no error."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest factors allowed for the median, the 90th percentile and all points of a metric; None: any."""

    median: float | None = None
    p90: float | None = None
    worst: float | None = None


THRESHOLDS: dict[str, dict[str, Limits]] = {
    "fig11": {
        "Request Mean": Limits(1.04, 1.10),
        "Request P99": Limits(1.05, 1.20),
        "Decode Mean": Limits(1.04, 1.12),
        "Decode P99": Limits(1.07, 1.18),
        "Prefill Mean": Limits(1.17, 1.8),
        "Prefill P99": Limits(1.30, 2.1),
        "Preemption Loss": Limits(1.30, 2.3),
    },
    "fig10": {"Downtime": Limits(worst=1.15), "Decode Latency": Limits(worst=1.15)},
    "fig13": {"Request Mean": Limits(worst=1.06), "Decode Mean": Limits(worst=1.06)},
    "fig14": {"Request Mean": Limits(median=1.03, worst=1.08), "Resource Cost": Limits(median=1.04, worst=1.07)},
    "fig15": {"Resource Cost": Limits(worst=1.05)},
}
"""Figure -> metric -> what its points have to meet."""

RATIOS = {"fig13": ("High", "Llumnix-base", "Llumnix")}
"""Figure -> the row whose ratios, of a series to another, are judged instead of its points."""

SHARES: dict[str, dict[float, float]] = {"fig11": {1.10: 0.50, 1.25: 0.75, 2.0: 0.95}}
"""Figure -> factor -> the smallest allowed share of all points within it; a figure need not have any."""

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


def ratios(points: pd.DataFrame, row: str, above: str, below: str) -> pd.DataFrame:
    """The points of one row as ratios of two series, which become one: `above / below`."""
    key = [column for column in KEY if column != "series"]
    of_row = points[points["row"] == row]
    one, other = (of_row[of_row["series"] == series][[*key, "value"]] for series in (above, below))
    both = one.merge(other, on=key, suffixes=("", "_below"), validate="one_to_one")
    return both.assign(value=both["value"] / both["value_below"], series=f"{above} / {below}")[[*KEY, "value"]]


def summarize(compared: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Median, 90th percentile and largest error, median signed log ratio and count, per group of simulated points."""
    simulated = compared.dropna(subset="error")
    groups = simulated.groupby(list(by), sort=False)
    return pd.DataFrame(
        {
            "median": groups["error"].median(),
            "p90": groups["error"].quantile(0.9),
            "worst": groups["error"].max(),
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
    for metric, limits in THRESHOLDS[figure].items():
        if metric in by_metric.index:
            for name, limit in _given(limits).items():
                value = by_metric.loc[metric, name]
                if value > np.log(limit):
                    found.append(f"{metric}: {name} {value:.3f} exceeds ln({limit:g}) = {np.log(limit):.3f}.")
    required = SHARES.get(figure, {})
    for factor, share in shares(compared, list(required)).items():
        if share < required[factor]:
            found.append(f"{share:.1%} of the points are within {factor:g}x, {required[factor]:.0%} must be.")
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


def _given(limits: Limits) -> dict[str, float]:
    """The limits that there are, by the name of what they limit."""
    named = {each.name: getattr(limits, each.name) for each in fields(limits)}
    return {name: limit for name, limit in named.items() if limit is not None}


def _print(compared: pd.DataFrame, figure: str, worst: int) -> None:
    console = words.console()
    limits = THRESHOLDS[figure]
    metrics = [*limits, *(m for m in compared["metric"].unique() if m not in limits)]
    console.print(f"{figure}: median / 90th percentile / largest |ln(sim/paper)| (signed median where beyond 0.05)")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", *metrics):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    whole = summarize(compared, ["metric"])
    table.add_row("required", *(_required(limits[m]) if m in limits else "" for m in metrics))
    table.add_row("all", *(_entry(whole, m) for m in metrics))
    table.add_row("", *(_judged(whole, m, limits[m]) if m in limits else "" for m in metrics))
    for name in ("row", "series"):
        parts = summarize(compared, [name, "metric"])
        for value in compared[name].drop_duplicates():
            table.add_row(value, *(_entry(parts, (value, m)) for m in metrics))
    console.print(table)
    if required := SHARES.get(figure):
        as_read = compared.assign(error=compared["log_ratio"].abs())
        strict = shares(as_read, list(required))
        console.print(f"\nall {len(compared)} points (in brackets: without the allowance of 0.1 s for preemption loss)")
        for factor, share in shares(compared, list(required)).items():
            verdict = "pass" if share >= required[factor] else "FAIL"
            console.print(
                f"  within {factor:g}x: {share:6.1%} ({strict[factor]:.1%}), required {required[factor]:.0%}: {verdict}"
            )
    console.print(f"\nthe {worst} worst points")
    for point in compared.dropna(subset="error").nlargest(worst, "error").itertuples():
        where = f"{point.row} {point.metric} {point.series} @ {point.x:g}"
        console.print(f"  {where:<42} sim {point.sim:9.4f}  paper {point.paper:9.4f}  ln {point.log_ratio:+.2f}")
    means = [metric for metric in ("Request Mean", "Prefill Mean") if metric in metrics]
    if means and {"Llumnix", "INFaaS++"} <= {*compared["series"]}:
        swapped = disordered(compared, "Llumnix", "INFaaS++", means)
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
    return f"{found['median']:.3f}/{found['p90']:.2f}/{found['worst']:.2f}{bias}"


def _required(limits: Limits) -> str:
    given = _given(limits)
    return "/".join(f"{np.log(given[each.name]):.3f}" if each.name in given else "-" for each in fields(limits))


def _judged(summary: pd.DataFrame, metric: str, limits: Limits) -> str:
    if metric not in summary.index:
        return "-"
    given, found = _given(limits), summary.loc[metric]
    verdicts = {name: "pass" if found[name] <= np.log(limit) else "FAIL" for name, limit in given.items()}
    return "/".join(verdicts.get(each.name, "-") for each in fields(limits))


def main(argv: Sequence[str] | None = None) -> int:
    """Compare one figure's CSV with the paper, print where they differ; the exit code says whether it is close."""
    about = "Compare the points of a figure with the paper's; exit 1 if a threshold is missed."
    examples = "examples:\n  python -m benchmarks.parity\n  python -m benchmarks.parity rows=S-S worst=30"
    examples += "\n  python -m benchmarks.parity fig=14"
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
    points, paper = pd.read_csv(path), paper[paper["row"].isin(rows)]
    if figure in RATIOS:
        points, paper = (ratios(table, *RATIOS[figure]) for table in (points, paper))
    compared = compare(points, paper)
    _print(compared, figure, int(asked.get("worst", "15")))
    failures = missed(compared, figure)
    sys.stdout.write("\n" + ("\n".join(failures) if failures else "All thresholds are met.") + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
