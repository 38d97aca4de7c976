"""Limits of a recorded engine: never a wrong number of blocks, and a limit only where one shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llumnix.errors import ConfigError
from llumnix.recorded_limits import Limits, kv_blocks, max_num_seqs, read


@settings(deadline=None)
@given(
    blocks=st.integers(50, 60_000),
    rows=st.integers(1, 300),
    decimals=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_the_number_of_blocks_is_found_or_not_but_never_wrong(blocks: int, rows: int, decimals: int, seed: int) -> None:
    used = np.random.default_rng(seed).integers(0, blocks + 1, rows)
    assert kv_blocks(np.round(100 * used / blocks, decimals)) in (blocks, None) or np.gcd.reduce([*used, blocks]) > 1


@pytest.mark.parametrize(("blocks", "decimals"), [(251, 1), (850, 2), (2587, 2), (3333, 2), (33_000, 4)])
def test_it_is_found_where_percentages_are_fine_enough(blocks: int, decimals: int) -> None:
    used = np.random.default_rng(0).integers(0, blocks + 1, 180)
    assert kv_blocks(np.round(100 * used / blocks, decimals)) == blocks


@pytest.mark.parametrize(("blocks", "decimals"), [(2587, 0), (4000, 2), (6000, 2), (33_000, 2)])
def test_it_is_not_found_where_other_numbers_show_the_same(blocks: int, decimals: int) -> None:
    used = np.random.default_rng(0).integers(0, blocks + 1, 180)
    assert kv_blocks(np.round(100 * used / blocks, decimals)) is None


def test_requests_at_a_time_show_where_others_wait_although_there_is_memory() -> None:
    running = np.array([10, 64, 64, 64, 64, 64, 30])
    waiting = np.array([0, 3, 5, 9, 4, 1, 0])
    free, full = np.full(7, 50.0), np.full(7, 99.0)
    assert max_num_seqs(running, waiting, free) == 64
    assert max_num_seqs(running, waiting, full) is None, "it is memory that they wait for"
    assert max_num_seqs(running, np.zeros(7), free) is None
    assert max_num_seqs(np.arange(7), waiting, free) is None
    now_and_then = np.array([10, 12] * 10)
    assert max_num_seqs(now_and_then, np.ones(20), np.full(20, 5.0)) is None, "who comes waits for the step to end"


def test_a_time_series_may_lack_everything(tmp_path: Path) -> None:
    path = tmp_path / "timeseries.csv"
    assert read(path) == Limits()
    path.write_text("t\n1.0\n")
    assert read(path) == Limits()
    path.write_text("t, kv_cache_pct\n1.0,30.5\n2.0,\n3.0,nan\n")
    assert read(path) == Limits(fullest_percent=30.5)
    path.write_text("t,kv_cache_pct\n1.0,none\n")
    with pytest.raises(ConfigError, match="column kv_cache_pct must hold numbers only"):
        read(path)
