"""How much free memory lies where it is of no use to the requests that wait for it (§3, §6.3; Figures 5 and 12).

Everything is computed from rows of instances.parquet; an instant is one sample of all instances.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis import load


def blocked_heads(run: Mapping[str, Any]) -> pd.DataFrame:
    """The samples while requests arrive, with `blocked_blocks`: the demand of a head of line that cannot start.

    A first waiting request is blocked if its instance has fewer free blocks, above its watermark, than it needs; one
    that only waits for the step under way to end is not.
    """
    instances = load.table(run["directory"], "instances")
    instances = instances[instances["time_s"] <= load.table(run["directory"], "requests")["arrival_s"].max()]
    watermark = (run["config.cluster.watermark_fraction"] * instances["total_blocks"]).astype(int)
    blocked = instances["head_blocks"] > instances["free_blocks"] - watermark
    demand = instances["head_blocks"].where(blocked & (instances["head_blocks"] > 0), 0)
    samples: pd.DataFrame = instances.assign(blocked_blocks=demand)
    return samples


def over_time(samples: pd.DataFrame) -> pd.DataFrame:
    """Per instant: `free` and `total` blocks of the cluster, `demand` of all blocked heads, and `fragmented` blocks.

    Fragmented is the demand of those blocked heads that the cluster's free memory would suffice for if it were in one
    place, counted from the smallest on while it does (§6.3).
    """
    instants = samples.groupby("time_s")
    found = instants.agg(free=("free_blocks", "sum"), total=("total_blocks", "sum"), demand=("blocked_blocks", "sum"))
    heads = samples[samples["blocked_blocks"] > 0].sort_values(["time_s", "blocked_blocks"])
    running = heads.groupby("time_s")["blocked_blocks"].cumsum()
    satisfied = running <= heads["time_s"].map(found["free"])
    fragmented = heads["blocked_blocks"].where(satisfied, 0).groupby(heads["time_s"]).sum()
    return found.assign(fragmented=fragmented.reindex(found.index, fill_value=0)).reset_index()
