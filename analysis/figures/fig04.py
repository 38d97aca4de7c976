"""Figure 4 (§3): time of a decode step against all tokens of the batch, for batches of equal requests.

The steps are those of the cost model that the simulator runs on, for LLaMA-7B on an A10 and LLaMA-30B on four. It is
linear, and fitted to other figures; so this shows what the simulations assume, and is no measurement of a GPU.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import load
from analysis.style import GREY, PALETTE

EXPERIMENT = "fig04"
VARIED = ["model", "trace.prompt_tokens", "num_requests"]
MODELS = ["LLaMA-7B", "LLaMA-30B"]
STEP, GAP = "Decode Step", "Heaviest / Lightest"
MARKERS = "osD^v"


def samples(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per model, length and batch, and per length the heaviest batch over the lightest.

    All prompts are prefilled before the first decode step. The request that is prefilled last then has two tokens with
    nothing but that step between them. Left out are batches that do not fit into memory, and so end in several steps.
    """
    rows = [row for run in load.rows(runs) if (row := _step(run)) is not None]
    steps = pd.DataFrame(rows).sort_values(["row", "length", "x"], key=_in_order)
    by_length = steps.groupby(["row", "length", "replicate"], sort=False)["value"]
    gap = (by_length.max() / by_length.min()).reset_index().rename(columns={"length": "x"})
    gap = gap.assign(metric=GAP, series="cost model", x_name="sequence_length", unit="x")
    return pd.concat([steps.drop(columns="length"), gap], ignore_index=True).assign(figure=EXPERIMENT)


def draw(points: pd.DataFrame, paper: pd.DataFrame, synthetic: set[str]) -> Figure:
    """A panel per model, a line per length."""
    figure = Figure(figsize=(11.0, 4.4), layout="constrained")
    for model, ax in zip(MODELS, figure.subplots(1, 2), strict=True):
        of_model = points[points["row"] == model]
        lines = of_model[of_model["metric"] == STEP].groupby("series", sort=False)
        for (name, line), colour, marker in zip(lines, PALETTE, MARKERS, strict=False):
            ax.plot(line["x"], 1000 * line["value"], color=colour, marker=marker, mew=0, label=name)
        widest = of_model.loc[of_model["metric"] == GAP, "value"].max()
        ax.set_title(f"{model}: up to {widest:.1f}x within a length" if len(of_model) else f"{model}: not run")
        ax.set(xlabel="Tokens in the batch", ylabel="Time of a decode step (ms)", ylim=(0, None), xlim=(0, None))
        ax.legend(loc="lower right", fontsize=9.5)
    figure.supxlabel("from the cost model that the simulations run on, not measured on a GPU", fontsize=9.5, color=GREY)
    return figure


def _step(run: dict[str, Any]) -> dict[str, Any] | None:
    requests = load.table(run["directory"], "requests")
    if requests["end_s"].nunique() > 1:
        return None
    length, last = int(run["config.trace.prompt_tokens"]), requests.iloc[-1]
    return {
        "row": run["config.model.label"],
        "metric": STEP,
        "series": f"{length} tokens each",
        "length": float(length),
        "x_name": "batched_tokens",
        "x": (length + 1.0) * len(requests),
        "value": last["end_s"] - last["first_token_s"],
        "unit": "s",
        "replicate": load.replicate(run),
    }


def _in_order(column: pd.Series) -> pd.Series:
    return column.map(MODELS.index) if column.name == "row" else column
