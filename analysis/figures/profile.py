"""The fitted cost model against the steps that were measured, for every profile in outputs/profile.

Decode-only steps over the batch, one line per context; prefill-only steps over the prompt's tokens; steps with both,
fitted against measured; and how far off the fit is in each region.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from analysis.style import GREY, PALETTE

EXPERIMENT = "profile"
FILE = "fit.parquet"
HOW = "python -m runners.profile engine=vllm_gpu model=llama_7b gpu=h100"
MEASURED, FITTED = "measured", "fitted"
DECODE, PREFILL, MIXED, ERROR = "Decode steps", "Prefill steps", "Mixed steps", "Error"


def read(outputs: Path) -> pd.DataFrame:
    """Rows per step of each profile, as measured and as fitted; empty if there is no profile.

    FILE has the columns of llumnix.profile.PROFILE, and fitted_s.
    """
    files = sorted((outputs / EXPERIMENT).glob(f"*/{FILE}"))
    rows = [row for file in files for row in _rows(file.parent.name, pd.read_parquet(file))]
    return pd.DataFrame(rows).assign(figure=EXPERIMENT, replicate="0") if rows else pd.DataFrame()


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """A row of panels per profile; dots are measured, lines fitted."""
    names = list(points["row"].unique())
    figure = Figure(figsize=(17.0, 4.2 * len(names) + 0.3), layout="constrained")
    axes = figure.subplots(len(names), 4, squeeze=False)
    for name, line in zip(names, axes, strict=True):
        here = points[points["row"] == name]
        _lines(line[0], here[here["metric"] == DECODE], "requests in the batch", linear=True)
        _lines(line[1], here[here["metric"] == PREFILL], "tokens computed", linear=False)
        _scatter(line[2], here[here["metric"] == MIXED])
        _errors(line[3], here[here["metric"] == ERROR])
        line[0].set_title(f"{name}: {DECODE.lower()}")
        for title, ax in zip((PREFILL, MIXED, "Error of the fit"), line[1:], strict=True):
            ax.set_title(title)
    return figure


def report(points: pd.DataFrame, notes: Sequence[str]) -> str:
    """The error in each region of each profile."""
    lines = ["How far fitted steps are off measured ones", "", *notes, *([""] if notes else [])]
    errors = points[points["metric"] == ERROR]
    for (name, region), of_region in errors.groupby(["row", "series"], sort=False):
        off = of_region["value"].abs()
        lines.append(
            f"{name}, {str(region).lower()}: {len(off)} kinds; off by {100 * off.median():.1f} % (median), "
            f"{100 * off.quantile(0.9):.1f} % (P90), {100 * off.max():.1f} % (worst)"
        )
    return "\n".join([*lines, ""])


def _rows(name: str, steps: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for place, step in enumerate(steps.to_dict("records")):
        times = {MEASURED: 1000 * step["step_s"], FITTED: 1000 * step["fitted_s"]}
        batch, prompts = step["decode_requests"], step["prefill_requests"]
        region = MIXED if batch and prompts else DECODE if batch else PREFILL
        known = {"row": name, "metric": region}
        if region == MIXED:
            yield known | {
                "series": MIXED,
                "x_name": "measured_ms",
                "x": times[MEASURED],
                "value": times[FITTED],
                "unit": "ms",
            }
        else:
            context = step["decode_context_tokens"] / batch if batch else step["prefill_context_tokens"] / prompts
            x_name, x = ("batch", batch) if batch else ("tokens", step["prefill_tokens"])
            for kind, value in times.items():
                yield known | {
                    "series": f"{_about(context)}, {kind}",
                    "x_name": x_name,
                    "x": float(x),
                    "value": value,
                    "unit": "ms",
                }
        error = times[FITTED] / times[MEASURED] - 1
        yield {
            "row": name,
            "metric": ERROR,
            "series": region,
            "x_name": "row",
            "x": float(place),
            "value": error,
            "unit": "share",
        }


def _about(context: float) -> str:
    """The nearest power of two: contexts grow while they are measured."""
    return f"context ~{2 ** round(np.log2(context))}" if context >= 1 else "no context"


def _lines(ax: Axes, here: pd.DataFrame, label: str, *, linear: bool) -> None:
    contexts = sorted(
        {series.partition(",")[0] for series in here["series"]}, key=lambda name: int(name.partition("~")[2] or 0)
    )
    shown = contexts if len(contexts) <= 6 else [contexts[round(i)] for i in np.linspace(0, len(contexts) - 1, 6)]
    for context, colour in zip(shown, PALETTE, strict=False):
        measured, fitted = (
            here[here["series"] == f"{context}, {kind}"].sort_values("x") for kind in (MEASURED, FITTED)
        )
        ax.plot(measured["x"], measured["value"], ls="", marker="o", mew=0, color=colour, alpha=0.8, label=context)
        ax.plot(fitted["x"], fitted["value"], color=colour, lw=1.3)
    if linear:
        ax.set_ylim(0, None)
    else:
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        _plain_numbers(ax.yaxis)
    ax.set(xlabel=label, ylabel="step (ms)")
    if shown:
        ax.legend(fontsize=8.5)


def _scatter(ax: Axes, here: pd.DataFrame) -> None:
    if here.empty:
        return
    ends = [here[["x", "value"]].min().min(), here[["x", "value"]].max().max()]
    ax.plot(ends, ends, color=GREY, lw=1)
    ax.plot(here["x"], here["value"], ls="", marker="o", ms=4, mew=0, color=PALETTE[0], alpha=0.6)
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        _plain_numbers(axis)
    ax.set(xlabel="measured (ms)", ylabel="fitted (ms)")


def _plain_numbers(axis: Axis) -> None:
    """Label a logarithmic axis with few plain numbers; it spans hardly more than a decade."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _errors(ax: Axes, here: pd.DataFrame) -> None:
    regions = [region for region in (DECODE, PREFILL, MIXED) if region in set(here["series"])]
    values = [100 * here.loc[here["series"] == region, "value"] for region in regions]
    ax.boxplot(values, tick_labels=[region.partition(" ")[0] for region in regions], whis=(10, 90), showfliers=False)
    ax.axhline(0, color=GREY, lw=1)
    ax.set(ylabel="(fitted - measured) / measured (%)")
    handles = [Line2D([], [], color=GREY, label="box: quartiles, whiskers: P10 and P90")]
    ax.legend(handles=handles, fontsize=8.5, handlelength=0)
