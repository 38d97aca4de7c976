"""How long KV blocks take through each carrier, out of an engine's memory and into it again.

One engine is source and destination, so nothing of the link between two GPUs, nor of the messages of a migration, is in
these times: with cuda_ipc they are copies within one GPU's memory. experiment=h100_fig10 measures real moves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llumnix.engines.vllm import carriers, versions
from llumnix.engines.vllm.engine import VllmEngine

BLOCKS = (1, 4, 16, 64, 256)
"""Sizes of a copy; the largest that fits twice is 128 MiB to 2 GiB with a model of 7 billion parameters."""
REPEATS = 6
"""Of each copy, of which the first warms up."""


@dataclass(frozen=True, slots=True)
class CopyTime:
    """One copy of `blocks` blocks, from the call that reads them to the moment that they are written."""

    carrier: str
    blocks: int
    copy_s: float


@dataclass(frozen=True, slots=True)
class Link:
    """Copies through one carrier as a line: latency_s + bytes / bandwidth."""

    carrier: str
    latency_s: float
    bandwidth_gb_s: float


def copy_times(engine: VllmEngine, clock: Callable[[], float]) -> list[CopyTime]:
    """Copy blocks that nobody owns, by every carrier that the engine has. The engine must be idle."""
    core = engine.core
    if engine.migration_unsupported is not None:
        return []
    free = engine.load(0, draining=False).free_blocks
    times = []
    for carrier in engine.carriers:
        if carrier == carriers.CUDA_IPC:
            exports = core.collective_rpc("llumnix_export")
            core.collective_rpc("llumnix_map", args=(exports,))
        for blocks in (size for size in BLOCKS if 2 * size <= free):
            source, target = list(range(1, 1 + blocks)), list(range(1 + blocks, 1 + 2 * blocks))
            for repeat in range(REPEATS):
                begun_s = clock()
                parcels = core.collective_rpc("llumnix_read", args=(source, carrier))
                core.collective_rpc("llumnix_write", args=(target, parcels), kwargs={"wait": True})
                _wait_for_device()
                if repeat:
                    times.append(CopyTime(carrier, blocks, clock() - begun_s))
                lent = carriers.lent(parcel.content for parcel in parcels)
                core.collective_rpc("llumnix_give_back", args=(lent,))
    return times


def links(times: Sequence[CopyTime], bytes_per_block: int) -> list[Link]:
    """Fit a line through the copies of each carrier, by relative error; empty where one size alone fitted."""
    found = []
    for carrier in dict.fromkeys(time.carrier for time in times):
        sizes = np.array([time.blocks * bytes_per_block for time in times if time.carrier == carrier], dtype=np.float64)
        copy_s = np.array([time.copy_s for time in times if time.carrier == carrier])
        if len(set(sizes)) < 2:
            continue
        slope, latency_s = np.polyfit(sizes, copy_s, 1, w=1 / copy_s)
        if slope > 0:
            found.append(Link(carrier, max(0.0, float(latency_s)), float(1e-9 / slope)))
    return found


def _wait_for_device() -> None:
    """Wait until the GPU has done all that it was asked for."""
    torch: Any = versions.lookup("torch")
    if torch.cuda.is_available():
        torch.cuda.synchronize()
