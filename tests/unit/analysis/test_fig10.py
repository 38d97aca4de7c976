"""Figure 10 from records written by hand: which move counts, over which length, and which decode steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.figures import fig10

BATCH = 4


def run(directory: Path, scheduler: str, *, prompt_tokens: int = 253, engine: str = "sim") -> dict[str, Any]:
    """A batch of four of which request 3 moves first, within 13 ms, and request 1 long after, within 90 ms."""
    moves = scheduler != fig10.STILL
    events = pd.DataFrame(
        {
            "time_s": [2.00, 2.09, 2.12, 3.0, 3.2, 3.3],
            "kind": ["migrate_start", "migrate_stage", "migrate_commit"] * 2,
            "request_id": [3, 3, 3, 1, 1, 1],
        }
    )
    steps = pd.DataFrame(  # prefill, two steps beside the copy, one of what is left
        {
            "start_s": [0.0, 1.99, 2.05, 2.11],
            "instance_id": 0,
            "steps": [1, 1, 1, 20],
            "duration_s": [1.9, 0.052, 0.054, 0.8],
            "batch": [BATCH, BATCH, BATCH, BATCH - 1],
            "tokens": [BATCH * prompt_tokens, BATCH, BATCH, BATCH - 1],
        }
    )
    requests = pd.DataFrame(
        {
            "request_id": range(BATCH),
            "migrations": [0, 1, 0, 2],
            "migration_downtime_s": [0.0, 0.090, 0.0, 0.026],
            "migration_gap_s": [0.0, 0.2, 0.0, 0.1],
        }
    )
    directory.mkdir()
    (events if moves else events[:0]).to_parquet(directory / "events.parquet")
    steps.to_parquet(directory / "steps.parquet")
    requests.to_parquet(directory / "requests.parquet")
    return {
        "directory": directory,
        "config.model.label": "LLaMA-7B",
        "config.trace.prompt_tokens": prompt_tokens,
        "config.cluster.block_size_tokens": 16,
        "config.scheduler.name": scheduler,
        "config.engine.name": engine,
        "workload.requests": BATCH,
        "seed": 0,
        "repeat": 0,
    }


def values(*runs: dict[str, Any]) -> dict[tuple[str, str], float]:
    found = fig10.samples(pd.DataFrame(runs))
    return {(row.metric, row.series): row.value for row in found.itertuples()}


def test_the_first_move_counts_and_a_request_that_moves_twice_with_the_mean_of_its_moves(tmp_path: Path) -> None:
    assert values(run(tmp_path / "a", "llumnix"))[fig10.DOWNTIME, "Migration"] == pytest.approx(13.0)
    assert values(run(tmp_path / "b", "replay"))[fig10.DOWNTIME, "Recompute"] == pytest.approx(13.0)


def test_on_real_engines_the_gap_between_tokens_is_there_too(tmp_path: Path) -> None:
    simulated, real = run(tmp_path / "a", "llumnix"), run(tmp_path / "b", "llumnix", engine="vllm")
    assert (fig10.GAP, "Migration") not in values(simulated)
    assert values(real)[fig10.GAP, "Migration"] == pytest.approx(50.0)


def test_decode_steps_are_those_begun_while_the_first_stage_was_copied(tmp_path: Path) -> None:
    moving, still = run(tmp_path / "a", "llumnix"), run(tmp_path / "b", fig10.STILL)
    found = values(moving, still)
    assert found[fig10.DECODE, "Migration"] == pytest.approx(54.0)
    assert found[fig10.DECODE, "Normal"] == pytest.approx(53.0)  # all of the whole batch
    assert (fig10.DOWNTIME, "Normal") not in found


def test_a_step_of_a_real_engine_lasts_since_the_end_of_the_one_before(tmp_path: Path) -> None:
    found = values(run(tmp_path / "a", "llumnix", engine="vllm"))  # the step from 2.05 s on ends at 2.104 s
    assert found[fig10.DECODE, "Migration"] == pytest.approx(1000 * (2.104 - 2.042))


def test_a_downtime_is_also_told_in_normal_decode_steps_of_its_own_length(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", "replay"), run(tmp_path / "b", fig10.STILL)]
    assert values(*runs)[fig10.LOST, "Recompute"] == pytest.approx(13.0 / 53.0)
    other = run(tmp_path / "c", "replay", prompt_tokens=509)  # its length has no normal steps
    found = fig10.samples(pd.DataFrame([*runs, other]))
    assert found[found["metric"] == fig10.LOST]["x"].tolist() == [256.0]


@pytest.mark.parametrize(("prompt_tokens", "length"), [(253, 256.0), (256, 256.0), (257, 272.0), (8189, 8192.0)])
def test_the_length_is_that_of_full_blocks(tmp_path: Path, prompt_tokens: int, length: float) -> None:
    found = fig10.samples(pd.DataFrame([run(tmp_path / "a", "llumnix", prompt_tokens=prompt_tokens)]))
    assert set(found["x"]) == {length}


def test_a_run_in_which_not_all_prompts_had_been_prefilled_is_left_out(tmp_path: Path) -> None:
    early, whole = run(tmp_path / "a", "llumnix"), run(tmp_path / "b", "llumnix", prompt_tokens=509)
    early["workload.requests"] = BATCH + 1
    assert set(fig10.samples(pd.DataFrame([early, whole]))["x"]) == {512.0}
