"""Text out of tokens: vLLM's OutputProcessor, once, above all engines. A migration is invisible to it.

It belongs to the front end: it has every request from its first token on, and so keeps what detokenization, stop
strings and cumulative logprobs have to remember. It takes outputs in order, each token once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llumnix.engines.base import EngineRequest, Output
from llumnix.engines.vllm import versions
from llumnix.engines.vllm.native import as_native


@dataclass(frozen=True, slots=True)
class Text:
    """What clients get to see: vLLM's RequestOutputs; `stopped` are requests whose engine has to be told to stop."""

    outputs: list[Any]
    stopped: list[str]


class TextOutputs:
    """One tokenizer and one OutputProcessor for the whole cluster."""

    def __init__(self, model: str, max_request_tokens: int) -> None:
        self._tokenizer = versions.lookup("vllm.tokenizers.get_tokenizer")(model)
        self._processor = versions.lookup("vllm.v1.engine.output_processor.OutputProcessor")(
            self._tokenizer, log_stats=False
        )
        self._max_request_tokens = max_request_tokens

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a prompt."""
        return tuple(self._tokenizer.encode(text))

    def add(self, request: EngineRequest) -> None:
        """Expect tokens of this request from now on."""
        native = as_native(request, self._max_request_tokens, self._tokenizer.eos_token_id)
        self._processor.add_request(native, None)

    def take(self, output: Output) -> Text:
        """Turn the next tokens of a request into text; of one that has ended, nothing comes any more."""
        reasons = versions.lookup("vllm.v1.engine.FinishReason")
        made = self._processor.process_outputs(
            [
                versions.lookup("vllm.v1.engine.EngineCoreOutput")(
                    request_id=output.request_id,
                    new_token_ids=list(output.tokens),
                    new_logprobs=output.logprobs,
                    finish_reason=None if output.finish_reason is None else reasons[output.finish_reason.upper()],
                    stop_reason=output.stop_reason,
                )
            ]
        )
        return Text(list(made.request_outputs), list(made.reqs_to_abort))

    def abort(self, request_id: str) -> None:
        """Expect nothing more of a request that its client has left."""
        self._processor.abort_requests([request_id], internal=True)
