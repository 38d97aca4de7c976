"""Steps are timed one by one, synchronous or a step ahead, on an engine whose steps cost what a formula says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.engines.base import EngineRequest, Output, StepResult
from llumnix.engines.sim.cost import PS_PER_S, CostModel
from llumnix.engines.sim.fit import fit_steps
from llumnix.engines.vllm.measure import Measured, Point, Room, grid, in_order, measure, medians_of, room_of
from llumnix.engines.vllm.meter import Content, Step, StepMeter, steady
from llumnix.profile import PROFILE, Region, in_region

Keep = Callable[[Sequence[Step]], None]

BLOCK = 16
DEVICE_S, PLANNING_S = 0.010, 0.001


@dataclass
class Served:
    request: EngineRequest
    computed: int = 0
    planned_outputs: int = 0
    outputs: int = 0

    @property
    def prompt(self) -> int:
        return len(self.request.prompt)

    @property
    def wanted(self) -> int:
        return int(self.request.sampling["max_tokens"])


@dataclass
class Scheduled:
    tokens: dict[str, int]
    makes: list[str]
    ends_s: float


@dataclass
class TimedEngine:
    """Plans steps as vLLM does (who runs first, then who waits, within one budget) and has a clock of its own.

    With `ahead`, a call plans one step and waits for the one before, as an engine that schedules asynchronously.
    """

    ahead: bool
    max_running: int = 64
    budget: int = 512
    kv_blocks: int = 2000
    max_request_tokens: int = 4096
    block_size_tokens: int = BLOCK
    now_s: float = 0.0
    device_free_s: float = 0.0
    preempts: bool = False
    requests: dict[str, Served] = field(default_factory=dict)
    planned: deque[Scheduled] = field(default_factory=deque)

    def __post_init__(self) -> None:
        scheduler = SimpleNamespace(
            has_requests=lambda: bool(self.requests),
            max_num_scheduled_tokens=self.budget,
            max_num_running_reqs=self.max_running,
        )
        self.core: Any = SimpleNamespace(scheduler=scheduler, batch_queue=self.planned if self.ahead else None)

    def clock(self) -> float:
        return self.now_s

    def add(self, request: EngineRequest) -> None:
        self.requests[request.request_id] = Served(request)

    def abort(self, request_id: str) -> None:
        del self.requests[request_id]

    def has_work(self) -> bool:
        return bool(self.requests or self.planned)

    def load(self, instance_id: int, *, draining: bool) -> Any:
        return SimpleNamespace(free_blocks=self.kv_blocks)

    def step(self) -> StepResult:
        result = StepResult(preempted=["somebody"] if self.preempts else [])
        if self.requests:
            planned = self._plan()
            result.scheduled.update(planned.tokens)
            self.planned.append(planned)
            if self.ahead and len(self.planned) < 2:
                return result
        if self.planned:
            done = self.planned.popleft()
            self.now_s = max(self.now_s, done.ends_s)
            result.outputs.extend(self._outputs(done))
        return result

    def _plan(self) -> Scheduled:
        left, tokens, makes, content = self.core.scheduler.max_num_scheduled_tokens, {}, [], Content()
        for request_id, item in self.requests.items():
            if len(tokens) == self.max_running or not left:
                break
            if item.computed < item.prompt:
                chunk = min(item.prompt - item.computed, left)
            elif item.planned_outputs < item.wanted:
                chunk = 1
            else:
                continue
            decodes = item.computed >= item.prompt
            content = content._replace(
                prefill_tokens=content.prefill_tokens + chunk * (not decodes),
                decode_requests=content.decode_requests + decodes,
                decode_context_tokens=content.decode_context_tokens + (item.computed + 1) * decodes,
            )
            item.computed += chunk
            left -= chunk
            tokens[request_id] = chunk
            if item.computed >= item.prompt:
                makes.append(request_id)
                item.planned_outputs += 1
        self.now_s += PLANNING_S
        self.device_free_s = max(self.device_free_s, self.now_s) + device_s(content)
        return Scheduled(tokens, makes, self.device_free_s)

    def _outputs(self, done: Scheduled) -> list[Output]:
        outputs = []
        for request_id in done.makes:
            if request_id in self.requests:
                item = self.requests[request_id]
                item.outputs += 1
                ended = item.outputs == item.wanted
                outputs.append(Output(request_id, item.outputs - 1, [5], "length" if ended else None))
                if ended:
                    del self.requests[request_id]
        return outputs


def device_s(content: Content) -> float:
    """What a step of the engine takes on its device."""
    return (
        DEVICE_S + 1e-4 * content.decode_requests + 1e-6 * content.decode_context_tokens + 2e-5 * content.prefill_tokens
    )


def run(
    engine: TimedEngine,
    *points: Point,
    limit_s: float = 1e9,
    keep: Keep = lambda steps: None,
    between_steps: Callable[[], None] = lambda: None,
) -> Measured:
    return measure(
        engine,  # type: ignore[arg-type]
        points,
        repeats=5,
        limit_s=limit_s,
        clock=engine.clock,
        progress=lambda done, total: None,
        keep=keep,
        between_steps=between_steps,
    )


@given(
    ahead=st.booleans(),
    decodes=st.integers(0, 20),
    context=st.integers(1, 600),
    prompts=st.integers(0, 3),
    chunk=st.integers(1, 100),
    chunks=st.integers(1, 6),
)
def test_every_measured_step_takes_what_it_takes(
    ahead: bool, decodes: int, context: int, prompts: int, chunk: int, chunks: int
) -> None:
    if not decodes and not prompts:
        decodes = 1
    point = Point(decodes, context if decodes else 0, prompts, chunk, chunks if prompts == 1 else 1)
    engine = TimedEngine(ahead)
    found = run(engine, point)
    assert found.left_out == {}
    hidden_s = 0.0 if ahead else PLANNING_S  # a step ahead, planning is done while the device works
    for step in found.steps:
        assert step.content.shape == (prompts, prompts * chunk, decodes)
        assert step.step_s == pytest.approx(device_s(step.content) + hidden_s)
    contexts = {step.content.prefill_context_tokens for step in found.steps}
    if prompts:
        assert contexts == {chunk * number for number in range(point.chunks)} or prompts > 1
    for kind in {(step.content.shape, step.content.prefill_context_tokens) for step in found.steps}:
        assert sum((s.content.shape, s.content.prefill_context_tokens) == kind for s in found.steps) >= 5
    assert not engine.has_work()
    assert engine.core.scheduler.max_num_scheduled_tokens == engine.budget


def test_medians_have_one_row_per_kind_of_step() -> None:
    decode = Content(decode_requests=2, decode_context_tokens=100)
    steps = [
        Step(decode._replace(decode_context_tokens=100 + 2 * i), time_s) for i, time_s in enumerate((1, 9, 2, 3, 2.5))
    ]
    prompt = Step(Content(1, 8, 0, 36), 4.0)
    assert medians_of([*steps, prompt]) == [Step(decode._replace(decode_context_tokens=104), 2.5), prompt]


def test_a_step_counts_only_between_two_of_its_own_shape() -> None:
    one, two = (Content(decode_requests=batch, decode_context_tokens=10 * batch) for batch in (1, 2))
    steps = [
        Step(one, None),
        Step(one, 1.0),
        None,
        Step(one, 2.0),
        Step(two, 3.0),
        Step(two, 4.0),
        Step(two, None),
        Step(two, 5.0),
    ]
    assert [step.step_s for step in steady(steps)] == [1.0, 4.0]


def test_an_interval_in_which_a_request_was_added_is_no_step() -> None:
    engine = TimedEngine(ahead=False)
    meter = StepMeter(engine, engine.clock)  # type: ignore[arg-type]
    meter.add(4, 3)
    assert [step and step.step_s for step in (meter.step(), meter.step())] == [None, pytest.approx(0.011105)]
    meter.add(4, 1)
    assert [step and step.step_s for step in (meter.step(),)] == [None]


def test_a_preemption_ends_the_measurement_with_a_reason() -> None:
    with pytest.raises(RuntimeError, match="too many for the KV blocks"):
        run(TimedEngine(ahead=True, preempts=True), Point(decodes=2, context_tokens=8))


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ({"max_running": 8}, "more than 8 requests at a time"),
        ({"budget": 40}, "more than 40 tokens in a step"),
        ({"max_request_tokens": 150}, "requests of 150 tokens or more"),
        ({"kv_blocks": 90}, "more than 90 KV blocks"),
    ],
)
def test_what_an_engine_has_no_room_for_is_left_out_with_the_reason(engine: dict[str, int], reason: str) -> None:
    found = run(TimedEngine(ahead=True, **engine), Point(10, 150, 1, 48, 2), Point(decodes=1, context_tokens=8))
    assert found.left_out == {reason: 1}
    assert {step.content.decode_requests for step in found.steps} == {1}


def test_a_time_limit_leaves_out_the_rest() -> None:
    points = [Point(decodes=batch, context_tokens=64) for batch in (1, 2, 3, 4)]
    found = run(TimedEngine(ahead=True), *points, limit_s=0.25)
    assert 0 < found.left_out["more than 0.25 s"] < len(points)
    assert len(found.medians) + found.left_out["more than 0.25 s"] == len(points)


def test_what_was_measured_before_an_engine_dies_has_been_kept() -> None:
    engine, kept = TimedEngine(ahead=True), []

    def keep(steps: Sequence[Step]) -> None:
        kept.extend(steps)
        engine.preempts = len(kept) >= 4

    points = [Point(prompts=1, chunk_tokens=chunk, chunks=2) for chunk in (16, 32, 64, 128)]
    with pytest.raises(RuntimeError, match="too many for the KV blocks"):
        run(engine, *points, keep=keep)
    assert kept == run(TimedEngine(ahead=True), *in_order(points)[:2]).medians
    assert len(kept) == 4


@given(ahead=st.booleans(), steps=st.integers(0, 40))
def test_a_measurement_that_ends_between_two_steps_leaves_an_idle_engine(ahead: bool, steps: int) -> None:
    engine, left = TimedEngine(ahead=ahead), steps

    def end() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            raise KeyboardInterrupt

    points = [Point(decodes=4, context_tokens=64, prompts=1, chunk_tokens=chunk, chunks=2) for chunk in (16, 32, 48)]
    with pytest.raises(KeyboardInterrupt):
        run(engine, *points, between_steps=end)
    assert not engine.requests
    assert not engine.has_work()
    assert run(engine, points[0]).medians


def room(engine: TimedEngine) -> Room:
    return room_of(engine)  # type: ignore[arg-type]


BIG = {"max_running": 128, "budget": 2048, "kv_blocks": 6800, "max_request_tokens": 9216}


@pytest.mark.parametrize("engine", [BIG, {}, {"max_running": 256, "kv_blocks": 851}])
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_any_part_of_a_profile_fits_and_tells_what_the_rest_would_have_been(
    engine: dict[str, int], share: float
) -> None:
    whole = TimedEngine(ahead=True, **engine)
    steps = table(run(whole, *grid()).medians)
    part = run(TimedEngine(ahead=True, **engine), *grid(), limit_s=share * whole.now_s)
    cost = CostModel(fit_steps(table(part.medians)).cost, 1)
    assert sum(part.left_out.values()) > sum(run(whole, *grid()).left_out.values())
    alone = in_region(Region.decode, steps["prefill_requests"], steps["decode_requests"])
    fitted_s = [
        cost.decode_ps(int(batch), int(held)) / PS_PER_S
        for batch, held in zip(steps["decode_requests"][alone], steps["decode_context_tokens"][alone], strict=True)
    ]
    np.testing.assert_allclose(fitted_s, steps["step_s"][alone], rtol=0.05)


def table(steps: Sequence[Step]) -> dict[str, np.ndarray]:
    rows = [(*step.content, step.step_s) for step in steps]
    return dict(zip(PROFILE.names, map(np.array, zip(*rows, strict=True)), strict=True))


def test_points_come_in_turns_by_kind_and_from_the_ends_of_the_grid_to_its_middle() -> None:
    fitting = [point for point in grid() if room(TimedEngine(ahead=True, **BIG)).reason_against(point, 5) is None]
    order = in_order(fitting)
    assert sorted(order, key=fitting.index) == fitting
    for part in (order[:12], order[: len(order) // 4], order):
        kinds = [(bool(point.decodes), bool(point.prompts)) for point in part]
        assert all(kinds.count(kind) >= len(part) // 6 for kind in ((True, False), (False, True), (True, True)))
    decodes = [point for point in order if not point.prompts]
    assert {point.decodes for point in decodes[:3]} >= {1, 128}
    assert max(point.context_tokens for point in decodes[:3]) == max(point.context_tokens for point in decodes)
