"""Which runs a figure is made of, when its directory also holds runs that were tried with other settings."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

GROUPS = ["trace", "arrivals", "scheduler"]
VARIED = ["qps", "cv", "seed", "repeat"]
NOT_SETTINGS = {f"config.{key}" for key in (*VARIED, "name", "force", "dry_run", "fail_fast", "exclude")}


def of_one_setting(runs: pd.DataFrame, varied: Collection[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """The runs that differ only in what a figure varies, and a sentence for each choice that had to be made.

    Runs may differ in qps, cv, seed and repeat, in the keys and groups of `varied`, and in trace, arrivals and
    scheduler, whose own fields may differ from one trace or scheduler to the next but not within it. Where settings
    differ otherwise, those with the most requests asked for over all their runs are kept; of equals, the latest.
    """
    notes: list[str] = []
    free = tuple(f"config.{key}" for key in varied)
    settings = [
        column
        for column in runs.columns
        if column.startswith("config.")
        and column not in NOT_SETTINGS
        and not any(column == key or column.startswith(f"{key}.") for key in free)
    ]
    of_groups = tuple(f"config.{group}." for group in GROUPS)
    runs = _largest(runs, [column for column in settings if not column.startswith(of_groups)], "", notes)
    own = [column for column in settings if column.startswith(of_groups)]
    groups = [group for group in GROUPS if group in runs.columns]
    kept = [
        _largest(group, own, f"{' '.join(map(str, names))}: ", notes)
        for names, group in runs.groupby(groups, sort=False, dropna=False)
    ]
    return pd.concat(kept).sort_index(), notes


def _largest(runs: pd.DataFrame, columns: list[str], where: str, notes: list[str]) -> pd.DataFrame:
    differing = [column for column in columns if runs[column].astype(str).nunique() > 1]
    if not differing:
        return runs
    setting = runs[differing].astype(str).agg(" ".join, axis=1)
    asked = runs["num_requests"].groupby(setting).sum()
    latest = runs["started_at"].astype(str).groupby(setting).max()
    best = max(asked.index, key=lambda name: (asked[name], latest[name]))
    chosen: pd.DataFrame = runs[setting == best]
    values = ", ".join(f"{column.removeprefix('config.')}={chosen[column].iloc[0]}" for column in differing)
    notes.append(f"{where}left out {len(runs) - len(chosen)} runs with other settings than {values}.")
    return chosen
