"""How fast KV blocks get from one process into another through the host: out of the source's device, into the other's.

Two processes on GPUs 0 and 1, on 0 if there is one, on CPUs if there is none. Medians of `repeats` copies of each size
after one that warms up, which is in the table by itself. How the parcel gets across is not in the times: with inline
that is all its bytes. GB/s is over both times. Neither engine nor steps are there: benchmarks.moves has real moves.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from rich.table import Table

from analysis import words
from benchmarks import measure
from llumnix.engines.vllm import carriers, versions

EXAMPLES = """examples:
  python -m benchmarks.carriers                     16 and 512 MiB by every carrier
  python -m benchmarks.carriers mib=8,64 repeats=30
"""
LAYERS = 32

T = TypeVar("T")


def timed(function: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the seconds that it takes."""
    begun_s = time.perf_counter()
    return function(), time.perf_counter() - begun_s


def device(number: int) -> Any:
    """The GPU of a number, of those that there are; the CPU if there is none."""
    torch: Any = versions.lookup("torch")
    gpus = torch.cuda.device_count()
    return torch.device(f"cuda:{number % gpus}" if gpus else "cpu")


def source(pipe: Connection) -> None:
    """Pack as often as asked; the parcel before has been read by then."""
    torch: Any = versions.lookup("torch")
    content = None
    while (asked := pipe.recv()) is not None:
        carrier, mib = asked
        blocks = torch.ones((LAYERS, mib << 20 >> 5), dtype=torch.uint8, device=device(0))
        if blocks.device.type == "cuda":
            torch.cuda.synchronize(blocks.device)
        carriers.discard([content])
        content, out_s = timed(partial(carriers.CARRIERS[carrier].pack, blocks))
        pipe.send((content, out_s))


def copy(pipe: Connection, carrier: str, mib: int) -> tuple[float, float]:
    """Seconds of one copy at the source and at the destination, this process."""
    pipe.send((carrier, mib))
    content, out_s = pipe.recv()
    blocks, in_s = timed(partial(carriers.CARRIERS[carrier].unpack, content, device(1)))
    assert bool((blocks == 1).all())
    return out_s, in_s


def main() -> None:
    """Measure every carrier and size, and print one table."""
    asked = words.parse(None, "benchmarks.carriers", ["mib", "repeats"], __doc__ or "", EXAMPLES)
    sizes = [measure.whole_number("mib", size) for size in asked.get("mib", "16,512").split(",")]
    repeats = measure.whole_number("repeats", asked.get("repeats", "9"))
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=source, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    print(
        f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"{device(0)} to {device(1)}"
    )
    table = Table("carrier", "MiB")
    for heading in ("first ms", "out ms", "in ms", "GB/s"):
        table.add_column(heading, justify="right")
    for carrier in carriers.CARRIERS:
        for mib in sizes:
            first, *times = (copy(ours, carrier, mib) for _ in range(1 + repeats))
            out_s, in_s = (statistics.median(side) for side in zip(*times, strict=True))
            rate = mib * 2**20 / 1e9 / (out_s + in_s)
            cells = (1e3 * sum(first), 1e3 * out_s, 1e3 * in_s, rate)
            table.add_row(carrier, str(mib), *(f"{cell:.2f}" for cell in cells))
    ours.send(None)
    process.join()
    words.console().print(table)


if __name__ == "__main__":
    main()
