"""Every trace format, from files small enough to read here, and what happens to files that are broken."""

from __future__ import annotations

import gzip
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llumnix.errors import TraceError
from llumnix.traces import FileTrace, Lengths


class Sample(NamedTuple):
    """A small file of one format with a broken row in it, and what it must be read as."""

    text: str
    format: str
    stamp_s: list[float] | None
    prompt_tokens: list[int]
    output_tokens: list[int]
    dropped: dict[str, int]


SAMPLES = {
    "azure 2023": Sample(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.9951690,396,109\r\n"
        "yesterday,5,6\r\n"
        "2023-11-16 18:16:46.6805900,1313,14",
        "Azure or Nanoflow CSV",
        [0, 4.314579, 60],
        [374, 396, 1313],
        [44, 109, 14],
        {"broken row": 1},
    ),
    "azure 2024": Sample(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.500000+00:00,2162,5\n"
        "2024-05-10 00:00:01+00:00,2399,6\n"
        "2024-05-10 02:00:01.750000+02:00,76,15\n"
        "2024-05-10 00:00:02.000000+00:00,76\n",
        "Azure or Nanoflow CSV",
        [0, 0.5, 1.25],
        [2162, 2399, 76],
        [5, 6, 15],
        {"broken row": 1},
    ),
    "nanoflow": Sample(
        "TIMESTAMP,ContextTokens,GeneratedTokens\nXXX,42,285\nXXX,,3\nXXX,7,8\n",
        "Azure or Nanoflow CSV",
        None,
        [42, 7],
        [285, 8],
        {"broken row": 1},
    ),
    "burstgpt 1": Sample(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,GPT-4,1087,230,1317,Conversation log\n"
        "45,GPT-4,0,0,0,API log\n"
        "46,GPT-4,-3,2,0,API log\n"
        "118,ChatGPT,417,276,693,API log\n",
        "BurstGPT CSV",
        [0, 40, 113],
        [472, 1087, 417],
        [18, 230, 276],
        {"no output token": 1, "broken row": 1},
    ),
    "burstgpt 3": Sample(
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "19440110.0,1722ac82-0a46,43,GPT-4,906,446,1352,Conversation log\n"
        "nan,,21,GPT-4,1,1,2,API log\n"
        "19454781.0,,21,GPT-4,264,171,435,API log\n",
        "BurstGPT CSV",
        [0, 14671],
        [906, 264],
        [446, 171],
        {"broken row": 1},
    ),
    "burstgpt, the artifact's extract": Sample(
        "Request tokens,Response tokens\n10,20\nten,20\n30,40.0\n",
        "BurstGPT CSV",
        None,
        [10, 30],
        [20, 40],
        {"broken row": 1},
    ),
    "vidur with times": Sample(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,374,44\ninf,1,1\n4.314579,396,109\n",
        "Vidur CSV",
        [0, 4.314579],
        [374, 396],
        [44, 109],
        {"broken row": 1},
    ),
    "vidur lengths": Sample(
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n3742,284,4026,0.0758\n0,9,9,0\n,,,\n8,9,17,1\n",
        "Vidur CSV",
        None,
        [3742, 8],
        [284, 9],
        {"no prompt token": 1, "broken row": 1},
    ),
    "splitwise": Sample(
        "request_id,request_type,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n"
        "0,2,0,1,1,4096,32\n1,2,0,3.5,1,2048,8\n2,2,0,,1,5,5\n",
        "Splitwise-sim CSV",
        [0, 2.5],
        [4096, 2048],
        [32, 8],
        {"broken row": 1},
    ),
    "mooncake": Sample(
        '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}\n'
        '{"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46]}\n'
        '{"timestamp": 30535, "input_length": "many"}\n',
        "Mooncake JSONL",
        [0, 3.053],
        [6955, 6472],
        [52, 26],
        {"broken row": 1},
    ),
    "bailian": Sample(
        '{"chat_id": 7, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 521, "output_length": 132, '
        '"type": "text", "turn": 1, "hash_ids": [1]}\n'
        "[1, 2]\n"
        '{"chat_id": 8, "parent_chat_id": 7, "timestamp": 62.114, "input_length": 5, "output_length": 6, '
        '"type": "search", "turn": 2, "hash_ids": [1]}\n',
        "Bailian JSONL",
        [0, 1],
        [521, 5],
        [132, 6],
        {"broken row": 1},
    ),
    "ragpulse": Sample(
        '{"timestamp": "82", "input_length": 3112, "output_length": 192, "hash_ids": {"history": [1]}, '
        '"session_id": "a"}\n'
        '{"timestamp": "80.5", "input_length": 12, "output_length": 19, "hash_ids": {}, "session_id": "b"}\n'
        '{"timestamp": "83", "input_length": 12, "outp\n'
        "\n",
        "RAGPulse JSONL",
        [0, 1.5],
        [12, 3112],
        [19, 192],
        {"broken row": 1},
    ),
    "sharegpt lines": Sample(
        '{"conversations": [{"from": "human", "value": "How are you?"}, {"from": "gpt", "value": "Well, thanks."}]}\n'
        '{"conversations": [{"from": "human", "value": "Hello"}]}\n'
        '{"conversations": "none"}\n'
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi there"}]}\n',
        "ShareGPT JSON, words and punctuation counted as tokens",
        None,
        [4, 1],
        [4, 2],
        {"fewer than two turns": 1, "broken row": 1},
    ),
    "sharegpt array": Sample(
        json.dumps(
            [
                {
                    "id": "a",
                    "conversations": [{"from": "human", "value": "one two"}, {"from": "gpt", "value": "three"}],
                },
                {"id": "b", "conversations": []},
                17,
                {"id": "c", "conversations": [{"from": "gpt", "value": "four"}, {"from": "user", "value": "5 6 7"}]},
            ],
            indent=1,
        ),
        "ShareGPT JSON, words and punctuation counted as tokens",
        None,
        [2, 1],
        [1, 3],
        {"fewer than two turns": 1, "broken row": 1},
    ),
}
# One draw from each bin; shape 1e6 makes all gaps equal, a single length leaves nothing to chance.
SERVEGEN_BINS = "0,0,0,,0,0\n600,0.01,1,Gamma,1000000,0.0001\nbroken,1,1,Gamma,1,1\n21600,0.01,1,Weibull,1000000,100\n"
SERVEGEN_LENGTHS = {"0": {"input_tokens": "{9: 1.0}", "output_tokens": "{4: 0.5}"}, "21600": {"input_tokens": "{}"}}


def read(path: Path, num_requests: int = 1000, **options: object) -> Lengths:
    options.setdefault("tokenizer", "words")
    trace = FileTrace(name="file", path=str(path), **options)  # type: ignore[arg-type]
    return trace.draw(num_requests, trace.streams(0))


def packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)  # no time of day, which would get into the names of tests


def crlf(text: str) -> bytes:
    return text.replace("\r\n", "\n").replace("\n", "\r\n").encode()


def with_mark_and_blank_lines(text: str) -> bytes:
    return b"\xef\xbb\xbf" + b"\n\n" + text.encode() + b"\n\n"


@pytest.mark.parametrize("written", [str.encode, packed, crlf, with_mark_and_blank_lines])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_is_read(name: str, written: Callable[[str], bytes], tmp_path: Path) -> None:
    sample = SAMPLES[name]
    path = tmp_path / "some.trace"
    path.write_bytes(written(sample.text))
    lengths = read(path)
    assert lengths.format == sample.format
    assert lengths.label == "some.trace"
    assert lengths.prompt_tokens.tolist() == sample.prompt_tokens
    assert lengths.output_tokens.tolist() == sample.output_tokens
    assert lengths.dropped == sample.dropped
    assert lengths.rows_in == len(sample.prompt_tokens) + sum(sample.dropped.values())
    if sample.stamp_s is None:
        assert lengths.stamp_s is None
    else:
        assert lengths.stamp_s is not None
        assert lengths.stamp_s.tolist() == pytest.approx(sample.stamp_s, abs=1e-6)


@pytest.mark.parametrize("given_file", ["trace.csv", "dataset.json"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_servegen_requests_are_drawn_from_rates_and_distributions(given_file: str, ending: str, tmp_path: Path) -> None:
    for kind, text in (("trace.csv", SERVEGEN_BINS), ("dataset.json", json.dumps(SERVEGEN_LENGTHS))):
        (tmp_path / f"chunk-3-{kind}{ending}").write_bytes(packed(text) if ending else text.encode())
    lengths = read(tmp_path / f"chunk-3-{given_file}{ending}")
    assert lengths.format == "ServeGen chunk"
    # Gaps of 100 s fit five times into the bin of 600 s; the sixth would be its end.
    assert len(lengths.prompt_tokens) in {5, 6}
    assert lengths.stamp_s is not None
    assert np.diff(lengths.stamp_s) == pytest.approx(100, rel=0.02)
    assert set(lengths.prompt_tokens.tolist()) == {9}
    assert set(lengths.output_tokens.tolist()) == {4}
    assert lengths.dropped["broken row"] == 1
    assert lengths.dropped["no length distribution"] in {5, 6}


def test_servegen_draws_depend_on_the_seed_only(tmp_path: Path) -> None:
    (tmp_path / "chunk-1-trace.csv").write_text("0,1,2,Gamma,0.25,4\n")
    (tmp_path / "chunk-1-dataset.json").write_text(
        json.dumps({"0": {"input_tokens": "{9: 0.5, 90: 0.5}", "output_tokens": "{4: 1}"}})
    )
    trace = FileTrace(name="file", path=str(tmp_path / "chunk-1-trace.csv"))
    first, again, other = (trace.draw(300, trace.streams(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.prompt_tokens, again.prompt_tokens)
    assert not np.array_equal(first.prompt_tokens, other.prompt_tokens)
    # Mean gap 1 s with variation 2.
    assert first.stamp_s is not None
    assert np.diff(first.stamp_s).mean() == pytest.approx(1, rel=0.4)


def test_servegen_needs_both_files(tmp_path: Path) -> None:
    alone = tmp_path / "chunk-1-trace.csv"
    alone.write_text("0,1,2,Gamma,0.25,4\n")
    with pytest.raises(TraceError, match=r"no trace file .*chunk-1-dataset\.json"):
        read(alone)
    renamed = tmp_path / "mine.csv"
    renamed.write_text("0,1,2,Gamma,0.25,4\n")
    with pytest.raises(TraceError, match=r"name must end in -trace\.csv"):
        read(renamed)
    (tmp_path / "chunk-1-dataset.json").write_text("[]")
    with pytest.raises(TraceError, match="not a ServeGen dataset"):
        read(alone)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (packed(""), "is empty"),
        (
            b"a,b,c\n1,2,3\n",
            r"has columns a, b, c, which fit no known format: .*TIMESTAMP.*Mooncake.*ShareGPT.*ServeGen",
        ),
        (b'{"a": 1}\n', r"has keys a, which fit no known format"),
        (b"{\n}\n", "its first 2 records are no JSON objects"),
        (b"[1, 2", "its first 2 records are no JSON objects"),
        (b"\x00\x01\x02\xff\xfe", "fit no known format"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n", r"no usable row \(Azure or Nanoflow CSV; no rows at all\)"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\nXXX,1\nXXX,4,0\n", r"1 × broken row, 1 × no output token"),
        (packed("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "XXX,1,2\n" * 5000)[:60], "damaged or incomplete gzip"),
        (b"\x1f\x8bnot really gzip", "damaged or incomplete gzip"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.trace"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as caught:
        read(path, 10**6)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"There is no trace file .*nothing\.csv: check trace\.path"):
        read(tmp_path / "nothing.csv")
    with pytest.raises(TraceError, match="is a directory"):
        read(tmp_path)


def test_text_needs_a_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "share.jsonl"
    path.write_text(SAMPLES["sharegpt lines"].text)
    with pytest.raises(TraceError, match=r"type trace\.tokenizer=PATH_OR_NAME .*or trace\.tokenizer=words"):
        read(path, tokenizer=None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TraceError, match="pip install transformers"):
        read(path, tokenizer="some/model")

    class Loader:
        """Counts characters and a token for the beginning of the sequence, in the shape of a Hugging Face tokenizer."""

        @staticmethod
        def from_pretrained(name: str) -> Callable[[str], types.SimpleNamespace]:
            if name != "some/model":
                raise OSError(f"{name} is unknown\nand more")
            return lambda text: types.SimpleNamespace(input_ids=[1, *map(ord, text)])

    monkeypatch.setitem(sys.modules, "transformers", types.SimpleNamespace(AutoTokenizer=Loader))
    assert read(path, tokenizer="some/model").prompt_tokens.tolist() == [13, 3]
    with pytest.raises(TraceError, match=r"other is not a tokenizer that can be loaded \(other is unknown\)"):
        read(path, tokenizer="other")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_and_scrambled_files_give_rows_or_one_sentence(tmp_path: Path, data: st.DataObject) -> None:
    text = SAMPLES[data.draw(st.sampled_from(sorted(SAMPLES)))].text
    cut = data.draw(st.integers(0, len(text)))
    junk = data.draw(st.binary(max_size=20))
    resume = data.draw(st.integers(cut, len(text)))
    path = tmp_path / "scrambled"
    path.write_bytes(text[:cut].encode() + junk + text[resume:].encode())
    try:
        lengths = read(path)
    except TraceError:
        return
    assert lengths.rows_in == len(lengths.prompt_tokens) + sum(lengths.dropped.values())
    assert lengths.prompt_tokens.min() >= 1
    assert lengths.output_tokens.min() >= 1
