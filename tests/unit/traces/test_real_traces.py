"""The readers on real files, against statistics that were measured on them with other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llumnix.traces import FileTrace, Lengths
from llumnix.traces.statistics import burstiness, length_statistics, rank_correlation

FULL = 10**6


def read(directory: Path, name: str, num_requests: int = FULL, **options: Any) -> Lengths:
    path = directory / name
    if not path.exists():
        pytest.skip(f"{name} is not at hand")
    trace = FileTrace(name="file", path=str(path), **options)
    return trace.draw(num_requests, trace.streams(0))


def rounded(tokens: np.ndarray) -> list[int]:
    measured = length_statistics(tokens)
    return [round(value) for value in (measured.mean, measured.p50, measured.p80, measured.p95, measured.p99)] + [
        round(measured.max)
    ]


def test_azure_2023_conversations(real_traces: Path) -> None:
    lengths = read(real_traces, "azure2023_AzureLLMInferenceTrace_conv.csv")
    assert lengths.rows_in == len(lengths.prompt_tokens) == 19_366
    assert rounded(lengths.prompt_tokens) == [1155, 1020, 1315, 4083, 4142, 14050]
    assert rounded(lengths.output_tokens) == [211, 129, 400, 451, 601, 1000]
    assert rank_correlation(lengths.prompt_tokens, lengths.output_tokens) == pytest.approx(0.07, abs=0.005)


def test_vidurs_copy_of_azure_is_the_same_row_for_row(real_traces: Path) -> None:
    azure = read(real_traces, "azure2023_AzureLLMInferenceTrace_conv.csv")
    vidur = read(real_traces, "vidur_splitwise_conv.csv.gz")
    assert np.array_equal(azure.prompt_tokens, vidur.prompt_tokens)
    assert np.array_equal(azure.output_tokens, vidur.output_tokens)
    assert azure.stamp_s is not None
    assert vidur.stamp_s is not None
    assert np.allclose(azure.stamp_s, vidur.stamp_s, rtol=0, atol=2e-6)


def test_mooncake_conversations(real_traces: Path) -> None:
    lengths = read(real_traces, "mooncake_fast25_conversation_trace.jsonl.gz")
    assert lengths.rows_in == len(lengths.prompt_tokens) == 12_031
    assert rounded(lengths.prompt_tokens)[:2] == [12035, 6909]
    assert rounded(lengths.output_tokens)[:4] == [343, 350, 504, 698]
    assert lengths.stamp_s is not None
    measured = burstiness(lengths.stamp_s)
    assert measured.rate_per_s == pytest.approx(3.401, abs=0.001)
    assert measured.gap_cv == pytest.approx(3.03, abs=0.01)
    assert measured.zero_gap_fraction == pytest.approx(0.90, abs=0.005)
    spread = read(real_traces, "mooncake_fast25_conversation_trace.jsonl.gz", stamp_resolution_s=3).stamp_s
    assert spread is not None
    assert burstiness(spread).gap_cv == pytest.approx(1.0, abs=0.15)


def test_nanoflow_lengths_without_times(real_traces: Path) -> None:
    lengths = read(real_traces, "nanoflow_sharegpt_lens.csv.gz", max_total_tokens=12_799)
    assert lengths.rows_in == 58_787
    assert lengths.stamp_s is None
    assert rounded(lengths.prompt_tokens)[:2] == [285, 36]
    assert rounded(lengths.output_tokens) == [323, 280, 501, 846, 999, 6972]


def test_burstgpt_1(real_traces: Path) -> None:
    name = "burstgpt_1_head400.csv"
    lengths = read(real_traces, name)
    assert (lengths.rows_in, lengths.dropped) == (400, {"no output token": 17})
    gpt4 = read(real_traces, name, model="GPT-4", log_type="Conversation log")
    assert len(gpt4.prompt_tokens) == 75
    assert rounded(gpt4.prompt_tokens) == [535, 380, 970, 1771, 2029, 2126]
    assert rounded(gpt4.output_tokens) == [242, 231, 381, 525, 682, 737]


def test_burstgpt_3(real_traces: Path) -> None:
    lengths = read(real_traces, "burstgpt_3_head119.csv")
    assert lengths.rows_in == 119
    assert lengths.prompt_tokens[:2].tolist() == [906, 36]
    assert lengths.stamp_s is not None
    assert lengths.stamp_s[-1] == 33_721


def test_splitwise_sim(real_traces: Path) -> None:
    lengths = read(real_traces, "splitwise_sim_test_trace.csv")
    assert lengths.prompt_tokens.tolist()[:2] == [4096, 2048]
    assert lengths.stamp_s is not None
    assert lengths.stamp_s[0] == 0


def test_the_first_rows_of_a_file_do_not_depend_on_how_many_are_asked_for(real_traces: Path) -> None:
    name = "azure2023_AzureLLMInferenceTrace_conv.csv"
    few, all_rows = read(real_traces, name, 100), read(real_traces, name)
    assert np.array_equal(few.prompt_tokens, all_rows.prompt_tokens[:100])
    assert few.rows_in == 100
