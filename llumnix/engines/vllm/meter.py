"""Times the steps of an engine one by one, and says what each worked on. It decides nothing about what is served."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llumnix.engines.base import EngineRequest
from llumnix.engines.vllm import versions
from llumnix.profile import pairs

if TYPE_CHECKING:
    from llumnix.engines.vllm.engine import VllmEngine

FIRST_TOKEN, TOKENS = 3, 997
"""Prompts are drawn from these many token ids, which every model has; the ones before them are special."""


class Content(NamedTuple):
    """What a step works on: the columns of llumnix.profile.PROFILE but the time."""

    prefill_requests: int = 0
    prefill_tokens: int = 0
    prefill_context_tokens: int = 0
    prefill_pairs: int = 0
    decode_requests: int = 0
    decode_context_tokens: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Requests and tokens: what is the same for all steps of a steady state, however long contexts grow."""
        return self.prefill_requests, self.prefill_tokens, self.decode_requests


@dataclass(frozen=True, slots=True)
class Step:
    """A step that has ended. `step_s` counts from the end of the one before; None if the engine was idle until then."""

    content: Content
    step_s: float | None


@dataclass(slots=True)
class _Known:
    prompt_tokens: int
    computed_tokens: int = 0


class StepMeter:
    """Steps `engine`, which serves only requests that were added here.

    With asynchronous scheduling a call of the engine begins one step and ends the one before, so what is timed is the
    interval from one end to the next. It is the time of a step where steps are alike; see `steady`. `between_steps` is
    called before each step that is measured: what it raises finds the engine whole.
    """

    def __init__(
        self,
        engine: VllmEngine,
        clock: Callable[[], float] = time.perf_counter,
        between_steps: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._between_steps = between_steps
        self._known: dict[str, _Known] = {}
        self._under_way: deque[Content] = deque()
        self._ended_s: float | None = None
        self._added = 0

    def add(self, prompt_tokens: int, output_tokens: int) -> str:
        """Queue a request of these lengths; return its id. The interval that this falls into is nobody's step."""
        request_id = f"measured-{self._added}"
        prompt = tuple((FIRST_TOKEN + (self._added * 131 + np.arange(prompt_tokens) ** 2 * 7) % TOKENS).tolist())
        sampling = {"temperature": 0.0, "max_tokens": output_tokens, "ignore_eos": True, "detokenize": False}
        order = self._added
        self._engine.add(EngineRequest(request_id, prompt, sampling, arrival_s=float(order), arrival_order=order))
        self._known[request_id] = _Known(prompt_tokens)
        self._added += 1
        self._ended_s = None
        return request_id

    def step(self) -> Step | None:
        """Step the engine once; return the step that ended, if one did. RuntimeError if memory did not suffice."""
        self._between_steps()
        return self._step()

    def _step(self) -> Step | None:
        core = self._engine.core
        in_flight = versions.steps_in_flight(core)
        begins = bool(core.scheduler.has_requests())
        result = self._engine.step()
        now_s = self._clock()
        if result.preempted:
            raise RuntimeError(f"{len(self._known)} requests are too many for the KV blocks: one was preempted")
        if begins:
            self._under_way.append(self._content(result.scheduled))
        for output in result.outputs:
            if output.finish_reason is not None:
                self._known.pop(output.request_id, None)
        if in_flight + begins == versions.steps_in_flight(core):
            return None
        content = self._under_way.popleft()
        ended_s, self._ended_s = self._ended_s, now_s
        return Step(content, None if ended_s is None else now_s - ended_s) if any(content) else None

    def clear(self) -> None:
        """Abort all requests, and step until the engine is idle."""
        for request_id in self._known:
            self._engine.abort(request_id)
        self._known.clear()
        while self._engine.has_work():
            self._step()

    def serves(self, request_ids: Iterable[str]) -> bool:
        """True while one of these requests has not ended."""
        return any(request_id in self._known for request_id in request_ids)

    def _content(self, scheduled: dict[str, int]) -> Content:
        """Describe a step that computes so many tokens of each request, and remember that they are computed."""
        parts = []
        for request_id, tokens in scheduled.items():
            request = self._known[request_id]
            context = request.computed_tokens
            if context < request.prompt_tokens:
                parts.append(Content(1, tokens, context, pairs(tokens, context), 0, 0))
            else:
                parts.append(Content(0, 0, 0, 0, 1, context + tokens))
            request.computed_tokens += tokens
        return Content(*map(sum, zip(*parts, strict=True)))


def steady(steps: Iterable[Step | None]) -> list[Step]:
    """Return the timed steps that lie between two of their own shape; None stands for a call that ended no step."""
    ended = [step for step in steps if step is not None]
    return [
        step
        for before, step, after in zip(ended, ended[1:], ended[2:], strict=False)
        if step.step_s is not None and before.content.shape == step.content.shape == after.content.shape
    ]
