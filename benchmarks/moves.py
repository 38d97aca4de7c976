"""What one live migration costs: the gap that its request sees, and what it does to the requests beside it.

Two instances, each with `beside` requests that decode all the time. One more request, the youngest, moves from one to
the other and back, `moves` times for each length and way. Gap: from its last token at the source to its first at the
destination, as their engines made them. Slow-down of the requests beside it: the time from the end of a step to the end
of the next, where a move lies in it, against the same of the same instance and batch where none does. It so contains
what an engine does for a move between two steps. Moves are ordered one by one; the global scheduler starts none.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from analysis import words
from benchmarks import overhead
from benchmarks.overhead import Setting as Engines
from benchmarks.overhead import fail, say
from llumnix.cluster.real.actors import ActorOptions
from llumnix.cluster.real.build import build_engine
from llumnix.cluster.real.front_end import Stream
from llumnix.cluster.real.messages import Step
from llumnix.cluster.real.spec import Limits
from llumnix.cluster.real.world import ClusterError, RayCluster, running
from llumnix.engines.base import EngineRequest
from llumnix.policies.dispatch import DispatchRule
from llumnix.policies.migration import MigrationMethod, MigrationPolicy
from llumnix.policies.spec import Scheduler

EXAMPLES = """examples:
  python -m benchmarks.moves                                 a tiny model on this machine's CPUs
  python -m benchmarks.moves model=llama_7b out=moves.json   LLaMA-7B's shape on two GPUs
  python -m benchmarks.moves ways=live,blocking lengths=256,512 moves=40
"""
WAYS = {
    "live": MigrationPolicy(),
    "blocking": MigrationPolicy(max_stages=1),
    "recompute": MigrationPolicy(method=MigrationMethod.recompute),
}
SETTLE_S = 0.15
"""Between two moves: the request decodes for a while, and nothing of the last move is under way any more."""

FROM_THE_SOURCE = 4
"""Tokens that the source may have sent and the front end not yet got when a move has ended."""


@dataclass(kw_only=True, slots=True)
class Setting:
    """What can be typed, and what it is if it is not. `arguments` (of vLLM's EngineArgs) are JSON."""

    model: str = "tiny"
    lengths: str = "64,256,512"
    ways: str = "live"
    beside: int = 4
    moves: int = 20
    num_gpus: float = 0.0
    kv_blocks: int = 200
    limit_s: float = 300.0
    arguments: str = ""
    out: str = ""


GPU_DEFAULTS = {"lengths": "256,512,1024,2048,4096,8000", "num_gpus": 1.0, "kv_blocks": 1600}
"""Where model=llama_7b differs from the tiny model."""


@dataclass(frozen=True, slots=True)
class Moved:
    """One move; `start_s` and `end_s` are wall-clock times of the order and of its answer."""

    length: int
    way: str
    gap_ms: float
    downtime_ms: float
    copied_blocks: int
    carrier: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Summary:
    """All moves of one length and way; the gap as median, least and most.

    `step_ms` and `slowdown` are of times from step end to step end; the latter, a ratio of means over `slowdown_steps`
    steps with a move in them, is NaN if nothing decodes beside it.
    """

    length: int
    way: str
    moves: int
    step_ms: float
    gap_ms: tuple[float, float, float]
    beyond_step_ms: float
    downtime_ms: float
    slowdown: float
    slowdown_steps: int
    carrier: str


def measure(setting: Setting) -> tuple[list[Moved], list[Summary]]:
    """Move requests of every length in every way."""
    engines = _engines(setting)
    build = partial(build_engine, overhead.engine_options(engines), json.loads(engines.environment))
    limits = Limits(control_s=30.0, start_s=setting.limit_s)
    actor = ActorOptions(num_cpus=engines.num_cpus, num_gpus=engines.num_gpus)
    scheduler = Scheduler(dispatch=DispatchRule.round_robin)
    moved: list[Moved] = []
    summaries: list[Summary] = []
    with running(2, build, scheduler, limits=limits, options=actor) as cluster:
        say("both instances are up")
        for way in setting.ways.split(","):
            for length in (int(word) for word in setting.lengths.split(",")):
                cluster.begin_run(scheduler, record_steps=True)
                found = list(_moves(cluster, setting, engines, length, way))
                steps = [instance.steps() for instance in cluster.instances]
                summaries.append(_summary(found, steps, beside=setting.beside))
                moved += found
                print(_line(summaries[-1]), flush=True)
    return moved, summaries


def _moves(cluster: RayCluster, setting: Setting, engines: Engines, length: int, way: str) -> Iterator[Moved]:
    room = engines.max_model_tokens - 1
    beside = [_submit(cluster, f"beside-{i}", i, 32, room - 32) for i in range(2 * setting.beside)]
    mover = _submit(cluster, "mover", len(beside), length, room - length)
    for stream in (*beside, mover):
        _await_tokens(stream, 8, setting.limit_s)
    for number in range(setting.moves + 1):
        time.sleep(SETTLE_S)
        at = mover.life.instance_last
        if at is None or mover.ended.is_set():
            fail(f"The request of {length} tokens ended before it had moved {setting.moves} times: lower moves=.")
        gap_s, start_s = mover.life.migration_gap_s, time.time()
        outcome = cluster.instances[at].migrate_out(1 - at, WAYS[way])
        end_s = time.time()
        if not outcome.moved or outcome.request_id != mover.life.request.request_id:
            fail(f"Instance {at} moved {outcome.request_id or 'nothing'}: {outcome.reason}")
        _await_tokens(mover, len(mover.tokens) + FROM_THE_SOURCE + 1, setting.limit_s)
        if number:  # the first move of a run maps memory and warms caches
            yield Moved(
                length,
                way,
                1000 * (mover.life.migration_gap_s - gap_s),
                1000 * outcome.downtime_s,
                outcome.copied_blocks,
                outcome.carrier,
                start_s,
                end_s,
            )
    for stream in (*beside, mover):
        stream.cancel()


def _submit(cluster: RayCluster, request_id: str, order: int, prompt_tokens: int, output_tokens: int) -> Stream:
    prompt = np.random.default_rng(order).integers(3, 990, prompt_tokens).tolist()
    sampling = {"max_tokens": output_tokens, "temperature": 0.0, "ignore_eos": True}
    request = EngineRequest(request_id, tuple(prompt), sampling, arrival_s=time.time(), arrival_order=order)
    return cluster.front_end.submit(request)


def _await_tokens(stream: Stream, tokens: int, limit_s: float) -> None:
    end_s = time.monotonic() + limit_s
    while len(stream.tokens) < tokens:
        if time.monotonic() > end_s or stream.ended.is_set():
            fail(f"{stream.life.request.request_id} has no {tokens} tokens: {stream.life.error or 'it takes too long'}")
        time.sleep(0.002)


def _summary(moved: Sequence[Moved], steps: Sequence[Sequence[Step]], *, beside: int) -> Summary:
    gaps = [one.gap_ms for one in moved]
    during: dict[tuple[int, int], list[float]] = defaultdict(list)
    apart: dict[tuple[int, int], list[float]] = defaultdict(list)
    for instance_id, of_instance in enumerate(steps):
        for before, step in pairwise(of_instance):
            decodes = step.tokens == step.batch and before.tokens == before.batch
            if not decodes or not moved[0].start_s < before.end_s < step.end_s < moved[-1].end_s:
                continue  # a prefill, or before and after the moves
            overlaps = any(one.start_s < step.end_s and before.end_s < one.end_s for one in moved)
            (during if overlaps else apart)[instance_id, step.batch].append(1000 * (step.end_s - before.end_s))
    # Batches differ by the request that moves: only equal ones are compared.
    ratios = [
        (len(during[key]), statistics.fmean(during[key]) / statistics.fmean(apart[key]))
        for key in during
        if beside and len(apart[key]) >= 10
    ]
    counted = sum(count for count, _ in ratios)
    step_ms = statistics.median(value for values in apart.values() for value in values)
    return Summary(
        moved[0].length,
        moved[0].way,
        len(moved),
        step_ms,
        (statistics.median(gaps), min(gaps), max(gaps)),
        statistics.median(gaps) - step_ms,
        statistics.median(one.downtime_ms for one in moved),
        sum(count * ratio for count, ratio in ratios) / counted if counted else float("nan"),
        counted,
        moved[0].carrier,
    )


def _line(one: Summary) -> str:
    middle, low, high = one.gap_ms
    others = f"other steps {100 * (one.slowdown - 1):+.1f} % ({one.slowdown_steps})" if one.slowdown_steps else "alone"
    return (
        f"{one.way:>9} {one.length:>6} tokens: step {one.step_ms:5.1f} ms, "
        f"gap {middle:6.1f} [{low:.1f}, {high:.1f}] ms, beyond a step {one.beyond_step_ms:5.1f} ms, "
        f"downtime {one.downtime_ms:5.1f} ms, {others}, {one.carrier}"
    )


def _engines(setting: Setting) -> Engines:
    """Say how the two engines are started, in the terms of the overhead benchmark, whose engines these are."""
    lengths = [int(word) for word in setting.lengths.split(",")]
    typed = [f"model={setting.model}", f"kv_blocks={setting.kv_blocks}", f"num_gpus={setting.num_gpus:g}"]
    engines = overhead.read_setting([*typed, *([f"arguments={setting.arguments}"] if setting.arguments else [])])
    engines.max_model_tokens = min(engines.block_size * setting.kv_blocks, max(lengths) + 1024)
    engines.max_num_batched_tokens = max(engines.max_num_batched_tokens, max(lengths))
    return engines


def read_setting(argv: Sequence[str] | None = None) -> Setting:
    """Turn the words of the command line into a setting."""
    known = {field.name: field.type for field in fields(Setting)}
    asked = words.parse(argv, "benchmarks.moves", list(known), __doc__ or "", EXAMPLES)
    defaults: dict[str, Any] = dict(GPU_DEFAULTS) if asked.get("model") == "llama_7b" else {}
    setting = Setting(**defaults | overhead.as_typed(asked, known))
    if not all(word.isdigit() and int(word) > 0 for word in setting.lengths.split(",")):
        words.stop(f"lengths must be whole numbers of tokens like 256,512; got '{setting.lengths}'.")
    if wrong := [way for way in setting.ways.split(",") if way not in WAYS]:
        words.stop(f"ways={wrong[0]} is not known; choose from {', '.join(WAYS)}.")
    if setting.moves < 2:
        words.stop(f"moves must be at least 2, got {setting.moves}.")
    return setting


def main() -> None:
    """Measure what is asked for and print it."""
    setting = read_setting()
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    try:
        moved, summaries = measure(setting)
    except ClusterError as error:
        fail(str(error))
    if setting.out:
        raw = {
            "setting": asdict(setting),
            "summaries": [asdict(s) for s in summaries],
            "moves": [asdict(m) for m in moved],
        }
        Path(setting.out).write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
