"""What a simulated request costs in small and in large clusters: CPU microseconds and memory by number of instances.

The configuration is that of experiment=scale (migration, priorities and auto-scaling on, Poisson arrivals), with the
same load and as many requests for each instance at every size. An event is an arrival, an end of a run of steps, a
message between instances or a migration round. CPU s are those of the run with its records, imports left out. A small
cluster has more events for each request, since it holds as many rounds, and moves more: judge by the cost of a request.
"""

from __future__ import annotations

import os
import sys

from rich.table import Table

from analysis import words
from benchmarks import measure

EXAMPLES = """examples:
  python -m benchmarks.scale                                16, 64, 256 and 1,024 instances
  python -m benchmarks.scale sizes=16,1024 requests=1000    so many requests for each instance (default 500)
  python -m benchmarks.scale rate=0.3                       requests/s for each instance (default 0.375)
"""


def overrides(instances: int, requests: int, rate_per_s: float) -> list[str]:
    """The configuration of one size; `requests` and `rate_per_s` are those of one instance."""
    return [
        "experiment=scale",
        f"cluster.instances={instances}",
        f"scheduler.scaling.max_instances={instances}",
        f"qps={rate_per_s * instances}",
        f"num_requests={requests * instances}",
    ]


def main() -> None:
    """Measure every size in a process of its own and print one table."""
    asked = words.parse(None, "benchmarks.scale", ["sizes", "requests", "rate"], __doc__ or "", EXAMPLES)
    sizes = [measure.whole_number("sizes", size) for size in asked.get("sizes", "16,64,256,1024").split(",")]
    requests = measure.whole_number("requests", asked.get("requests", "500"))
    rate_per_s = measure.positive_number("rate", asked.get("rate", "0.375"))
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")

    table = Table()
    for heading in (
        "instances", "requests", "events", "CPU s", "us/event", "us/request", "moves/request", "peak MiB",
        "KiB/request",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    idle_mib = measure.in_own_process(measure.serve, overrides(1, 1, rate_per_s)).peak_mib
    per_request: dict[int, float] = {}
    for instances in sizes:
        sys.stderr.write(f"{instances} instances, {requests * instances:,} requests ...\n")
        done = measure.in_own_process(measure.serve, overrides(instances, requests, rate_per_s))
        per_request[instances] = 1e6 * done.cpu_s / done.requests
        table.add_row(
            f"{instances:,}",
            f"{done.requests:,}",
            f"{done.events:,}",
            f"{done.cpu_s:.2f}",
            f"{1e6 * done.cpu_s / done.events:.1f}",
            f"{per_request[instances]:.0f}",
            f"{done.migrations / done.requests:.2f}",
            f"{done.peak_mib:.0f}",
            f"{1024 * (done.peak_mib - idle_mib) / done.requests:.1f}",
        )
    words.console().print(table)
    growth = per_request[max(sizes)] / per_request[min(sizes)]
    print(f"us/request at {max(sizes):,} instances, over that at {min(sizes):,}: {growth:.2f}")


if __name__ == "__main__":
    main()
