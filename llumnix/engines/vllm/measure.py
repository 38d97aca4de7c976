"""Which steps of an engine are measured to fit a cost model on, and how the engine is brought to make them.

Decode steps over batch and context, prefill steps over length and context, and steps with both. Every point is a steady
state of equal steps: the token budget of a step is set to what the point wants, so that the engine's own scheduler
makes exactly that step over and over. Points come from coarse to fine, so that a measurement can end at any time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from llumnix.engines.vllm import versions
from llumnix.engines.vllm.meter import Content, Step, StepMeter, steady

if TYPE_CHECKING:
    from llumnix.engines.vllm.engine import VllmEngine

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
CONTEXTS = (128, 512, 2048, 8192)
CHUNKS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
CHUNKS_PER_PROMPT = 16
PROMPT_TOKENS = 8192
SHORT_PROMPTS = ((2, 64), (2, 256), (4, 32), (4, 128), (4, 512), (8, 64), (8, 256))
MIXED_BATCHES = (4, 16, 48, 96)
MIXED_CONTEXTS = (128, 1024)
MIXED_CHUNKS = (16, 64, 256, 512, 1024, 1920)
MIXED_CHUNKS_PER_PROMPT = 4
MIXED_SHORT_PROMPTS = ((2, 64), (4, 128))
"""Grid of a GPU. Smaller engines leave out what they have no room for."""
WARM_STEPS = 3
"""Steps, or prompts, before those that count. Nor does the last one count, as nothing like it follows."""
SPARE_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Point:
    """`decodes` requests of `context_tokens` tokens each decode beside `prompts` at a time, computed in `chunks`."""

    decodes: int = 0
    context_tokens: int = 0
    prompts: int = 0
    chunk_tokens: int = 0
    chunks: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Length of each prompt."""
        return self.chunk_tokens * self.chunks

    @property
    def step_tokens(self) -> int:
        """Tokens that a step computes."""
        return self.decodes + self.prompts * self.chunk_tokens

    def steps(self, repeats: int) -> int:
        """Steps that it takes to see each of its steps `repeats` times."""
        return (repeats + WARM_STEPS + 1) * max(1, self.chunks)


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine has room for, in requests and tokens."""

    requests: int
    step_tokens: int
    request_tokens: int
    kv_blocks: int
    block_size_tokens: int

    def reason_against(self, point: Point, repeats: int) -> str | None:
        """Why a point cannot be measured here; None if it can."""
        if point.decodes + WARM_STEPS * point.prompts > self.requests:
            return f"more than {self.requests} requests at a time"
        if point.step_tokens > self.step_tokens:
            return f"more than {self.step_tokens} tokens in a step"
        longest = point.context_tokens + self.outputs(point, repeats) if point.decodes else 0
        if max(longest, point.prompt_tokens + 1) >= self.request_tokens:
            return f"requests of {self.request_tokens} tokens or more"
        # A prompt that has ended keeps its blocks until its last step has been seen.
        blocks = point.decodes * self._blocks(longest) + 3 * point.prompts * self._blocks(point.prompt_tokens + 1)
        if blocks > self.kv_blocks:
            return f"more than {self.kv_blocks} KV blocks"
        return None

    def outputs(self, point: Point, repeats: int) -> int:
        """Output tokens that each decoding request needs: while the others are prefilled, and then to the end."""
        prefill_steps = -(-point.decodes * point.context_tokens // max(1, self.step_tokens - point.decodes))
        return prefill_steps + point.steps(repeats) + SPARE_TOKENS

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size_tokens)


@dataclass(frozen=True, slots=True)
class Measured:
    """Steps that were measured, their medians with one row per kind of step, and points left out by reason."""

    steps: list[Step]
    medians: list[Step]
    left_out: dict[str, int]


def room_of(engine: VllmEngine) -> Room:
    """Ask an engine what it has room for."""
    core = engine.core
    load = engine.load(0, draining=False)
    return Room(
        requests=int(core.scheduler.max_num_running_reqs),
        step_tokens=versions.token_budget(core.scheduler),
        request_tokens=engine.max_request_tokens,
        kv_blocks=load.free_blocks,
        block_size_tokens=engine.block_size_tokens,
    )


def grid() -> list[Point]:
    """Return all points, a kind after the other."""
    return [*_decode_points(), *_prefill_points(), *_mixed_points()]


def in_order(points: Sequence[Point]) -> list[Point]:
    """Return the points in the order in which they are measured: any part of it, from the first on, covers the grid.

    Of each kind, those that lie farthest from all before them come first: the corners, then what is between. The kinds
    take turns, in proportion to their numbers.
    """
    kinds: defaultdict[tuple[bool, bool], list[Point]] = defaultdict(list)
    for point in points:
        kinds[point.decodes > 0, point.prompts > 0].append(point)
    place = [(i / len(kind), point) for kind in kinds.values() for i, point in enumerate(_farthest_first(kind))]
    return [point for _, point in sorted(place, key=lambda entry: entry[0])]


def _farthest_first(points: Sequence[Point]) -> Iterator[Point]:
    """Yield the first point, and then the one whose nearest among those before is farthest, by the ratio of sizes."""
    at = np.log2(1 + np.array([astuple(point) for point in points], dtype=np.float64))
    nearest = np.full(len(points), np.inf)
    place = 0
    for _ in points:
        yield points[place]
        nearest = np.minimum(nearest, np.abs(at - at[place]).sum(axis=1))
        nearest[place] = -1
        place = int(nearest.argmax())


def measure(
    engine: VllmEngine,
    points: Sequence[Point],
    *,
    repeats: int,
    limit_s: float,
    clock: Callable[[], float],
    progress: Callable[[int, int], None],
    keep: Callable[[Sequence[Step]], None],
    between_steps: Callable[[], None] = lambda: None,
) -> Measured:
    """Measure every step of the points that the engine has room for at least `repeats` times, until `limit_s`.

    The medians of each point are given to `keep` as soon as they are there. The engine must be idle; it is idle
    afterwards, also where `between_steps` ended the measurement by raising.
    """
    room, meter, begun_s = room_of(engine), StepMeter(engine, clock, between_steps), clock()
    steps: list[Step] = []
    medians: list[Step] = []
    reasons = {point: room.reason_against(point, repeats) for point in points}
    left_out = Counter(reason for reason in reasons.values() if reason is not None)
    fitting = in_order([point for point, reason in reasons.items() if reason is None])
    for done, point in enumerate(fitting):
        progress(done, len(fitting))
        if clock() - begun_s > limit_s:
            left_out[f"more than {limit_s:g} s"] = len(fitting) - done
            break
        found = _steps_of(engine, meter, point, room.outputs(point, repeats), repeats)
        steps += found
        medians += (middles := medians_of(found))
        keep(middles)
    else:
        progress(len(fitting), len(fitting))
    return Measured(steps, medians, dict(left_out))


def medians_of(steps: Sequence[Step]) -> list[Step]:
    """One row per kind of step: the median time, at the mean context of its decodes, which grows by the step."""
    kinds: defaultdict[tuple[int, ...], list[Step]] = defaultdict(list)
    for step in steps:
        kinds[(*step.content.shape, step.content.prefill_context_tokens)].append(step)
    return [_middle(kind) for kind in kinds.values()]


def _middle(kind: Sequence[Step]) -> Step:
    context = round(sum(step.content.decode_context_tokens for step in kind) / len(kind))
    times = [step.step_s for step in kind if step.step_s is not None]
    return Step(kind[0].content._replace(decode_context_tokens=context), median(times))


def _steps_of(engine: VllmEngine, meter: StepMeter, point: Point, outputs: int, repeats: int) -> list[Step]:
    scheduler = engine.core.scheduler
    full = versions.token_budget(scheduler)
    try:
        for _ in range(point.decodes):
            meter.add(point.context_tokens, outputs)
        while point.decodes:
            step = meter.step()
            if step is not None and step.content.shape == (0, 0, point.decodes):
                break
            if not engine.has_work():
                raise RuntimeError(f"{point} was never reached: its requests ended before all of them decoded")
        if point.prompts:
            versions.set_token_budget(scheduler, point.step_tokens)
            prompts = [meter.add(point.prompt_tokens, 1) for _ in range(point.prompts * (repeats + WARM_STEPS))]
            made = []
            while meter.serves(prompts):
                made.append(meter.step())
        else:
            made = [meter.step() for _ in range(point.steps(repeats))][WARM_STEPS - 1 :]
        return [step for step in steady(made) if _is_of(step.content, point)]
    finally:
        versions.set_token_budget(scheduler, full)
        meter.clear()


def _is_of(content: Content, point: Point) -> bool:
    return content.shape == (point.prompts, point.prompts * point.chunk_tokens, point.decodes)


def _decode_points() -> Iterator[Point]:
    for context in CONTEXTS:
        for batch in BATCHES:
            yield Point(decodes=batch, context_tokens=context)


def _prefill_points() -> Iterator[Point]:
    for chunk in CHUNKS:
        for chunks in sorted({1, min(CHUNKS_PER_PROMPT, PROMPT_TOKENS // chunk)}):
            yield Point(prompts=1, chunk_tokens=chunk, chunks=chunks)
    for prompts, length in SHORT_PROMPTS:
        yield Point(prompts=prompts, chunk_tokens=length, chunks=1)


def _mixed_points() -> Iterator[Point]:
    for decodes in MIXED_BATCHES:
        for context in MIXED_CONTEXTS:
            for chunk in MIXED_CHUNKS:
                chunks = max(1, min(MIXED_CHUNKS_PER_PROMPT, PROMPT_TOKENS // chunk))
                yield Point(decodes, context, 1, chunk, chunks)
            for prompts, length in MIXED_SHORT_PROMPTS:
                yield Point(decodes, context, prompts, length, 1)
