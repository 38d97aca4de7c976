"""How fast the simulator is on this machine: one run, all of Figure 11, and a small run from start to end.

One run: 10,000 requests of M-M at 7.6 requests/s on 16 instances under Llumnix; CPU s in a fresh process, imports and
configuration left out. Figure 11: the command line with all its workers, records included, one seed; wall s, and the
largest process. Small run: the command line with 200 requests, wall s. Medians, with the range in brackets.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from analysis import words
from benchmarks import measure

EXAMPLES = """examples:
  python -m benchmarks.speed                    all three
  python -m benchmarks.speed only=run           or only=figure, only=small
  python -m benchmarks.speed only=run runs=9    runs per median (default 5; the figure is drawn once)
"""

ONE_RUN = ["scheduler=llumnix", "trace=m_m", "qps=7.6", "num_requests=10000"]
FIGURE = ["experiment=fig11", "force=true"]
SMALL = ["num_requests=200", "force=true"]

ROOT = Path(__file__).resolve().parents[1]
POLL_S = 0.05


def one_run(runs: int) -> None:
    """CPU seconds of one run and of its parts."""
    done = [measure.in_own_process(measure.serve, ONE_RUN) for _ in range(runs)]
    print(f"one run ({' '.join(ONE_RUN)})")
    for name in ("cpu_s", "serve_s", "write_s"):
        print(f"  {name:11} {_spread([getattr(run, name) for run in done])}")
    first = done[0]
    print(f"  {first.migrations} migrations, {first.preemptions} preemptions, {first.output_tokens:,} output tokens")
    print(f"  peak {max(run.peak_mib for run in done):.0f} MiB")


def figure() -> None:
    """Wall seconds of Figure 11 from an empty directory, and its largest process."""
    with tempfile.TemporaryDirectory() as empty:
        wall_s, peak_mib = _watched([sys.executable, "-m", "runners.serve", *FIGURE], Path(empty))
        done = len(list(Path(empty).glob("outputs/*/runs/*/summary.json")))
    print(f"figure 11 ({' '.join(FIGURE)}): {done} runs in {wall_s:.1f} s, largest process {peak_mib:.0f} MiB")


def small_run(runs: int) -> None:
    """Wall seconds of a small run, interpreter start and imports included."""
    with tempfile.TemporaryDirectory() as empty:
        walls = [_watched([sys.executable, "-m", "runners.serve", *SMALL], Path(empty))[0] for _ in range(runs)]
    print(f"small run ({' '.join(SMALL)})\n  wall_s      {_spread(walls)}")


def _watched(command: Sequence[str], directory: Path) -> tuple[float, float]:
    """Wall seconds of a command, and the peak MiB of the largest process of its session (0 where /proc is missing)."""
    log = directory / "output.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    peak_mib, started = 0.0, time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        while process.returncode is None:
            peak_mib = max(peak_mib, _largest_mib(process.pid))
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
    wall_s = time.perf_counter() - started
    if process.returncode != 0:
        words.stop(f"{' '.join(command)} ended with code {process.returncode}:\n{log.read_text()[-2000:]}")
    return wall_s, peak_mib


def _largest_mib(session: int) -> float:
    """Peak MiB so far of the largest living process of a session."""
    peaks = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getsid(int(status.parent.name)) != session:
                continue
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue  # it has ended
        if "VmHWM" in fields:
            peaks.append(int(fields["VmHWM"].split()[0]) / 1024)
    return max(peaks)


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f}  [{min(values):.3f}, {max(values):.3f}]  n={len(values)}"


def main() -> None:
    """Measure what is asked for and print it."""
    asked = words.parse(None, "benchmarks.speed", ["only", "runs"], __doc__ or "", EXAMPLES)
    only, runs = asked.get("only", "all"), measure.whole_number("runs", asked.get("runs", "5"))
    if only not in ("all", "run", "figure", "small"):
        words.stop(f"only={only} is not known; choose only=run, only=figure or only=small.")
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if only in ("all", "run"):
        one_run(runs)
    if only in ("all", "figure"):
        figure()
    if only in ("all", "small"):
        small_run(runs)


if __name__ == "__main__":
    main()
