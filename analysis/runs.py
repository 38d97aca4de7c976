"""`python -m analysis.runs`: which runs there are, what they were asked, how they ended, and their headline numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table

from analysis import load, words
from llumnix import metrics
from llumnix.errors import ConfigError

FILTERS = ["state", "trace", "scheduler", "qps", "cv", "seed", "repeat", "num_requests", "model", "gpu", "engine"]
SORTED = ["experiment", "trace", "scheduler", "qps", "seed", "repeat"]
DESCRIPTION = "List runs: what they were asked, how they ended, and their headline numbers."
SLO = ["slo.ttft_s", "slo.tpot_s"]
KEYS = ["experiment", "outputs", *FILTERS, *SLO]
EXAMPLES = """examples:
  python -m analysis.runs                                          all runs under outputs/
  python -m analysis.runs experiment=fig11 state=failed            what broke, and why
  python -m analysis.runs trace=m_m scheduler=llumnix,infaas qps=7.5
  python -m analysis.runs experiment=fig11 slo.ttft_s=2 slo.tpot_s=0.1     who meets an SLO; nothing runs anew

states: done; failed (the next serve command tries it again); unfinished (running, or interrupted)
"""
HEADLINES = {
    "request_latency_mean_s": "request\nmean s",
    "request_latency_p99_s": "\np99 s",
    "prefill_latency_mean_s": "prefill\nmean s",
    "prefill_latency_p99_s": "\np99 s",
    "decode_latency_mean_s": "decode\nmean s",
    "decode_latency_p99_s": "\np99 s",
    "preemption_loss_mean_s": "preempt.\nloss s",
    "migrations": "migra-\ntions",
    "slo_attainment": "within\nSLO",
    "goodput_per_s": "goodput\n1/s",
    "finished": "finished",
    "rejected": "rejected",
    "failed": "failed",
    "wall_s": "wall\ns",
}
"""Key of summary.json or run.json -> heading; a column of nothing but zeros or gaps is left out."""
COLOURS = {load.State.DONE: "green", load.State.FAILED: "red", load.State.UNFINISHED: "yellow"}


def main(argv: Sequence[str] | None = None) -> None:
    """Print one line per run, then the counts; exit 2 with one sentence where there is none."""
    asked = words.parse(argv, "analysis.runs", KEYS, DESCRIPTION, EXAMPLES)
    slo = _slo({key: asked.pop(key) for key in SLO if key in asked})
    outputs = Path(asked.pop("outputs", str(load.OUTPUTS)))
    experiment = asked.pop("experiment", "*")
    if (state := asked.get("state")) and not {*state.split(",")} <= {*load.State}:
        words.stop(f"state={state} is not a state; choose among: {', '.join(load.State)}.")
    every = load.runs(outputs, experiment)
    runs = load.matching(every, asked)
    if runs.empty:
        where = f"{outputs / experiment / 'runs'}"
        words.stop(
            f"None of the {len(every)} runs in {where} has {' '.join(f'{k}={v}' for k, v in asked.items())}."
            if len(every)
            else f"No runs in {where}; make some with: python -m runners.serve experiment=fig11"
        )
    if slo.given:
        runs = judged(runs, slo)
    table = _table(runs.sort_values([key for key in SORTED if key in runs]))
    console = words.console()
    needed = console.measure(table, options=console.options.update_width(1000)).maximum
    console.width = max(console.width, needed)  # a narrow terminal wraps lines; no number is cut off
    console.print(table)
    counts = [f"{count} {state}" for state in load.State if (count := (runs["state"] == state).sum())]
    console.print(f"{len(runs)} runs: {', '.join(counts)}")


def _slo(limits: Mapping[str, str]) -> metrics.Slo:
    try:
        return metrics.Slo(**{key.removeprefix("slo."): float(value) for key, value in limits.items()})
    except ValueError as error:  # ConfigError is one
        wrong = " ".join(f"{key}={value}" for key, value in limits.items())
        words.stop(str(error) if isinstance(error, ConfigError) else f"{wrong}: limits are numbers of seconds.")


def judged(runs: pd.DataFrame, slo: metrics.Slo) -> pd.DataFrame:
    """The runs with SLO attainment and goodput under `slo`, whatever SLO they were run with, from requests.parquet."""
    columns = ["arrival_s", "sent_s", "first_token_s", "end_s", "output_tokens", "status"]
    judged = {}
    for index, directory in runs.loc[runs["state"] == load.State.DONE, "directory"].items():
        frame = load.requests([directory], columns)
        requests = {name: frame[name].to_numpy() for name in columns}
        judged[index] = (metrics.slo_attainment(requests, slo), metrics.goodput_per_s(requests, slo))
    found = pd.DataFrame.from_dict(judged, orient="index", columns=["slo_attainment", "goodput_per_s"])
    return runs.drop(columns=found.columns, errors="ignore").join(found)


def _table(runs: pd.DataFrame) -> Table:
    """One row per run. Configuration beyond the essential is shown only where runs differ in it."""
    essential = ["experiment"] * (runs["experiment"].nunique() > 1) + ["run_id", "trace", "scheduler", "qps"]
    varying = [key for key in FILTERS[4:] if key in runs and runs[key].astype(str).nunique() > 1]
    asked = [key for key in (*essential, *varying) if key in runs]
    found = [key for key in HEADLINES if key in runs and (runs[key].fillna(0) != 0).any()]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for key in (*asked, "state"):
        table.add_column(key.replace("_", "\n") if key in varying else key, no_wrap=True)
    for key in found:
        table.add_column(HEADLINES[key], justify="right", no_wrap=True)
    if with_reasons := bool((runs["reason"] != "").any()):
        table.add_column("reason", no_wrap=True)
    for run in runs.to_dict("records"):
        colour = COLOURS[load.State(run["state"])]
        table.add_row(
            *(_cell(run[key]) for key in asked),
            f"[{colour}]{run['state']}[/]",
            *(_cell(run[key]) for key in found),
            *([escape(run["reason"])] if with_reasons else []),
        )
    return table


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if pd.isna(value) else f"{value:.4g}" if value != int(value) else f"{value:.0f}"
    return escape(str(value))


if __name__ == "__main__":
    with words.interruptible():
        main()
