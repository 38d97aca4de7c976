"""One front end above all engines: text, stop strings and logprobs do not notice a migration."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from driver import Cluster, Make, migrate, request

from llumnix.engines.base import EngineRequest, Output


class Reader(Cluster):
    """A cluster whose client reads text. A stop string ends a request at whichever engine has it by then."""

    def __init__(self, texts: Any, *engines: Any) -> None:
        super().__init__(*engines)
        self.texts = texts
        self.text: dict[str, str] = {}
        self.last: dict[str, Any] = {}

    def ask(self, one: EngineRequest) -> None:
        self.texts.add(one)
        self.engines[0].add(one)

    def deliver(self, output: Output, engine: int) -> None:
        super().deliver(output, engine)
        text = self.texts.take(output)
        for made in text.outputs:
            self.text[made.request_id] = made.outputs[0].text
            self.last[made.request_id] = made
        for request_id in text.stopped:
            self.engines[engine].abort(request_id)


@pytest.fixture(scope="module")
def texts(engine_of: Make) -> Any:
    from llumnix.engines.vllm.text import TextOutputs

    engine = engine_of("a")
    return TextOutputs(engine._core.vllm_config.model_config.model, engine.max_request_tokens)


def read(texts: Any, engines: tuple[Any, ...], one: EngineRequest, move_at: int | None) -> Reader:
    reader = Reader(texts, *engines)
    reader.ask(one)
    if move_at is not None:
        reader.step_until(move_at, [one.request_id])
        assert migrate(reader, one.request_id, 0, 1, decode_between=False).ok
    reader.drain()
    reader.assert_clean()
    return reader


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 11, "frequency_penalty": 0.4}], ids=str)
def test_a_stop_string_ends_a_migrated_request(engine_of: Make, texts: Any, sampling: dict[str, Any]) -> None:
    engines = engine_of("a"), engine_of("b")
    one = request("text", 50, logprobs=0, **sampling)
    whole = read(texts, engines, one, None)
    words = whole.text["text"].split()
    assert len(words) == 80
    # Two words: the string ends in another token than it begins in, and the migration falls between the two.
    at = next(i for i in range(30, 70) if (words[i], words[i + 1]) not in pairwise(words[:i]))
    stops = replace(one, sampling=one.sampling | {"stop": [f"{words[at]} {words[at + 1]}"]})
    for move_at in (None, 1, at + 1):
        stopped = read(texts, engines, stops, move_at)
        assert stopped.text["text"].split() == words[:at]
        assert stopped.last["text"].outputs[0].stop_reason == stops.sampling["stop"][0]
        assert len(stopped.delivered.tokens["text"]) == at + 2
        assert stopped.delivered.makers["text"].count(1) == (0 if move_at is None else at + 2 - move_at)


def test_cumulative_logprobs_go_on(engine_of: Make, texts: Any) -> None:
    engines = engine_of("a"), engine_of("b")
    one = request("scored", 61, logprobs=2, temperature=0.8, seed=2)
    runs = [read(texts, engines, one, move_at).last["scored"].outputs[0] for move_at in (None, 17)]
    assert runs[0].token_ids == runs[1].token_ids
    assert runs[0].cumulative_logprob == pytest.approx(runs[1].cumulative_logprob, abs=1e-3)
    assert len(runs[1].logprobs) == 80
