"""Recorded requests: read, compared; and lines that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llumnix.errors import ConfigError
from llumnix.ground_truth import compare, latencies, read


def line(**changes: Any) -> str:
    usual = {"request_id": "bench-0", "input_toks": 10, "output_toks": 5, "arrival_time": 1000.0}
    times = {"queued_ts": 7.0, "scheduled_ts": 7.1, "first_token_ts": 7.5, "last_token_ts": 8.0}
    return json.dumps({key: value for key, value in (usual | times | changes).items() if value is not None})


def file_of(directory: Path, *lines: str) -> Path:
    path = directory / "requests.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    return path


def test_requests_come_in_order_of_arrival_on_one_clock(tmp_path: Path) -> None:
    recording = read(
        file_of(
            tmp_path,
            line(arrival_time=1002.0, queued_ts=9.05, first_token_ts=9.5, last_token_ts=10.0, input_toks=20),
            line(arrival_time=1000.0, queued_ts=7.25),
        )
    )
    # the second was taken in 0.2 s later than it could have been, as the first tells
    assert recording.workload.arrival_s.tolist() == [0.0, 2.0]
    assert recording.workload.prompt_tokens.tolist() == [10, 20]
    np.testing.assert_allclose(recording.queued_s, [0.2, 2.0])
    np.testing.assert_allclose(recording.first_token_s, [0.45, 2.45])
    np.testing.assert_allclose(recording.end_s, [0.95, 2.95])


def test_where_arrivals_were_not_recorded_the_engine_took_requests_in_at_once(tmp_path: Path) -> None:
    recording = read(file_of(tmp_path, line(arrival_time=None, queued_ts=7.25), line(arrival_time=None)))
    assert recording.workload.arrival_s.tolist() == [0.0, 0.25]
    assert recording.queued_s.tolist() == [0.0, 0.25]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (line(queued_ts=None), "line 2: no key 'queued_ts'; each request needs input_toks"),
        (line(output_toks="many"), "line 2: not a request"),
        ("{", "line 2: not a request"),
        ("[]", "line 2: not a request"),
        (line(output_toks=0), "line 2: needs input_toks and output_toks of at least 1"),
        (line(first_token_ts=6.0), "line 2: needs .* in this order"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, wrong: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(file_of(tmp_path, line(), wrong))


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no requests"):
        read(file_of(tmp_path))


COLUMNS = {
    "output_tokens": [1, 5, 11],
    "real_queued_s": [0.0, 1.0, 2.0],
    "real_first_token_s": [1.0, 3.0, 4.0],
    "real_end_s": [1.0, 7.0, 14.0],
    "simulated_queued_s": [0.0, 1.0, 2.0],
    "simulated_first_token_s": [1.0, 3.0, 7.0],
    "simulated_end_s": [1.0, 5.0, 12.0],
}


def test_latencies_count_from_when_the_engine_took_a_request_in() -> None:
    real = latencies(COLUMNS, "real")
    assert real["latency"].tolist() == [1.0, 6.0, 12.0]
    assert real["ttft"].tolist() == [1.0, 2.0, 2.0]
    assert real["tpot"].tolist() == [1.0, 1.0], "of the two that have more than one token"


def test_an_error_is_how_much_longer_the_simulated_one_is() -> None:
    found = {(c.metric, c.statistic): c for c in compare(COLUMNS)}
    assert len(found) == 12
    assert found["ttft", "mean"].error == pytest.approx(8 / 5 - 1)
    assert found["tpot", "P50"].simulated_s == pytest.approx(0.5)
    assert found["latency", "P99"].error == pytest.approx((4 + 0.98 * 6) / (6 + 0.98 * 6) - 1)
