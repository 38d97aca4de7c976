"""Fragmented memory from samples made by hand, and what must hold for any samples."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.fragmentation import blocked_heads, over_time
from llumnix import record


def samples(*instants: list[tuple[int, int]]) -> pd.DataFrame:
    """Per instant a list of (free blocks, blocks that the blocked head needs) of instances of 100 blocks."""
    rows = [
        {"time_s": float(time), "free_blocks": free, "total_blocks": 100, "blocked_blocks": need}
        for time, instances in enumerate(instants)
        for free, need in instances
    ]
    return pd.DataFrame(rows)


def test_demand_counts_from_the_smallest_on_while_free_memory_suffices() -> None:
    found = over_time(samples([(20, 30), (15, 25), (10, 0)], [(20, 0), (5, 0), (5, 0)], [(10, 40), (5, 50), (5, 30)]))
    assert found["free"].tolist() == [45, 30, 20]
    assert found["total"].tolist() == [300, 300, 300]
    assert found["demand"].tolist() == [55, 0, 120]
    assert found["fragmented"].tolist() == [25, 0, 0]  # 25 + 30 would be more than 45


def test_all_demand_is_fragmented_where_memory_suffices_for_it() -> None:
    assert over_time(samples([(40, 50), (60, 40)]))["fragmented"].tolist() == [90]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 120)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_fragmented_is_within_free_and_demand_and_blind_to_the_order_of_instances(
    instances: list[tuple[int, int]], random: Random
) -> None:
    found = over_time(samples(instances)).iloc[0]
    assert 0 <= found["fragmented"] <= min(found["free"], found["demand"])
    shuffled = [*instances]
    random.shuffle(shuffled)
    assert over_time(samples(shuffled)).iloc[0]["fragmented"] == found["fragmented"]
    if found["demand"] <= found["free"]:
        assert found["fragmented"] == found["demand"]


def test_a_head_is_blocked_only_if_its_own_instance_lacks_the_memory(tmp_path: Path) -> None:
    directory = tmp_path
    heads = [0, 10, 93, 94, 50]
    free = [100, 100, 100, 100, 40]
    count = len(heads)
    columns = {
        "time_s": [0.0, 0.0, 0.0, 0.0, 99.0],
        "instance_id": list(range(count)),
        "running": [0] * count,
        "waiting": [0] * count,
        "free_blocks": free,
        "total_blocks": [783] * count,
        "head_blocks": heads,
        "freeness": [0.0] * count,
        "draining": [False] * count,
    }
    record.write_table(directory / "instances.parquet", record.INSTANCES, columns, {})
    pd.DataFrame({"arrival_s": [0.0, 1.0]}).to_parquet(directory / "requests.parquet")
    found = blocked_heads({"directory": directory, "config.cluster.watermark_fraction": 0.0101})
    assert found["blocked_blocks"].tolist() == [0, 0, 0, 94]  # 100 - 7 suffice for 93; the last sample is too late
