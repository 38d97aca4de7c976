"""What `slo.` words ask for, and what a finished run says to it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llumnix.errors import ConfigError
from runners.objective import LIMITED, Objective


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Four requests with a TTFT of 1, 2, 3 and 4 s and a TPOT of 0.1, 0.2, 0 (one token) and 0.4 s."""
    summary = {"ttft_p99_s": 3.97, "decode_latency_p99_s": 0.394, "decode_latency_mean_s": 0.175}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    columns = {
        "arrival_s": [0.0] * 4,
        "sent_s": [1.0] * 4,
        "first_token_s": [2.0, 3.0, 4.0, 5.0],
        "end_s": [3.0, 5.0, 4.0, 9.0],
        "output_tokens": [11, 11, 1, 11],
        "status": ["finished"] * 4,
    }
    pq.write_table(pa.table(columns), tmp_path / "requests.parquet")
    return tmp_path


def test_limits_on_statistics(run: Path) -> None:
    objective = Objective.parse({"ttft_p99_s": "4", "tpot_p99_s": "0.3"})
    found = objective.measure(run)
    assert found == {"ttft_p99_s": 3.97, "tpot_p99_s": 0.394}
    assert not objective.holds(found)
    assert objective.holds(found | {"tpot_p99_s": 0.3})
    assert objective.show(found) == "ttft_p99_s 3.97 (4), tpot_p99_s 0.394 (0.3)"


@pytest.mark.parametrize(
    ("words", "attained"),
    [({"ttft_s": "2"}, 0.5), ({"tpot_s": "0.2"}, 0.75), ({"ttft_s": "3", "tpot_s": "0.15"}, 0.5)],
)
def test_a_share_of_requests(run: Path, words: dict[str, str], attained: float) -> None:
    objective = Objective.parse(words | {"attainment": f"{attained}"})
    found = objective.measure(run)
    assert found["slo_attainment"] == attained
    assert objective.holds(found)
    assert not Objective.parse(words | {"attainment": f"{attained + 0.01}"}).holds(found)
    assert not Objective.parse(words).holds(found)  # 99 % unless something else is said


def test_all_of_it_has_to_hold(run: Path) -> None:
    objective = Objective.parse({"ttft_p99_s": "3", "ttft_s": "9"})
    assert objective.measure(run)["slo_attainment"] == 1.0
    assert not objective.holds(objective.measure(run))


def test_a_statistic_of_nothing_does_not_hold(run: Path) -> None:
    objective = Objective.parse({"high_ttft_p99_s": "4"})
    assert objective.measure(run) == {"high_ttft_p99_s": math.inf}
    assert not objective.holds(objective.measure(run))


def test_every_limit_is_a_key_that_summaries_have() -> None:
    from llumnix.metrics import summarize

    columns = {
        **{name: [0.0, 0.0] for name in ("arrival_s", "sent_s", "first_token_s", "end_s", "preemption_loss_s")},
        **{name: [0.0, 0.0] for name in ("migration_downtime_s", "max_token_gap_s", "exec_s")},
        **{name: [1, 1] for name in ("prompt_tokens", "output_tokens", "preemptions", "migrations")},
        "migration_gap_s": [0.0, 0.0],
        "priority": [0, 1],
        "status": ["finished"] * 2,
    }
    known = summarize(columns)
    assert [key for key in LIMITED if key.replace("tpot", "decode_latency") not in known] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({}, "Say what has to hold, for example slo.ttft_p99_s=5"),
        ({"ttft_p9_s": "1"}, "slo.ttft_p9_s: no such limit; did you mean slo.ttft_p99_s"),
        ({"colour": "1"}, "slo.colour: no such limit; there are for example slo.ttft_p99_s"),
        ({"ttft_s": "soon"}, "slo.ttft_s must be a positive number, got soon"),
        ({"ttft_s": "-1"}, "slo.ttft_s must be a positive number, got -1"),
        ({"attainment": "0.9"}, "slo.attainment is the share of requests within slo.ttft_s and slo.tpot_s: give those"),
        ({"ttft_s": "1", "attainment": "99"}, "slo.attainment is a share of requests, at most 1, got 99"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(words: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Objective.parse(words)
    assert sentence in str(raised.value)
