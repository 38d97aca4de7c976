"""`python -m runners.serve`: serve a workload on a cluster, once or in a sweep. Only the frame around Hydra is here.

Exit codes: 0 all done, 1 any failed, 2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from llumnix.errors import ConfigError
from runners import config, interrupt, provenance, report
from runners.command_line import is_lost_worker, is_multirun, one_sentence, with_multirun
from runners.job import OUTPUTS, Progress, job_of_sweep, run, shown
from runners.outcome import Outcome, State
from runners.sweep import ENV, Follower, SweepLog

CONF = Path(__file__).resolve().parent.parent / "conf"
FAILED, USAGE, INTERRUPTED = 1, 2, 130  # Ctrl-C and SIGTERM alike
FULL_ERROR = "HYDRA_FULL_ERROR"
WITH_TRACEBACK = os.environ.get(FULL_ERROR) == "1"
WRONG_CONFIGURATION = (HydraException, OmegaConfBaseException, ConfigError)
OTHER_CODE = "Some of these results were made by another commit of the code; force=true makes them anew."

config.register()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return the exit code."""
    words = with_multirun(sys.argv[1:] if argv is None else argv, CONF / "experiment")
    sys.argv[1:] = words
    # Without this a SIGTERM would leave joblib's workers behind, alive and waiting for good.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ[FULL_ERROR] = "1"  # Hydra then raises its errors instead of printing them
    try:
        return _sweep() if is_multirun(words) else _single()
    except WRONG_CONFIGURATION as error:
        if WITH_TRACEBACK:
            raise
        return _say(one_sentence(error), USAGE)
    except OSError as error:
        if WITH_TRACEBACK:
            raise
        return _say(f"Cannot write results: {one_sentence(error)}", FAILED)


def _single() -> int:
    outcomes: list[Outcome] = []

    def task(cfg: DictConfig) -> None:
        with _progress_bar() as progress:
            outcomes.append(run(cfg, root=OUTPUTS / cfg.name, git=provenance.git(), progress=progress))

    try:
        _hydra(task)
    except KeyboardInterrupt:
        return _say("Interrupted: nothing is kept of the unfinished run.", INTERRUPTED)
    if not outcomes:  # Hydra only showed something
        return 0
    outcome = outcomes[0]
    if outcome.state is State.INVALID:
        return _say(outcome.message, USAGE)
    _print(report.line(outcome, list(outcome.settings)))
    if outcome.state in report.WITH_RESULTS:
        report.run_table(outcome)
    if outcome.other_code:
        _print(OTHER_CODE)
    if outcome.directory:
        _print(outcome.directory)
    return _exit_code(outcomes)


def _sweep() -> int:
    started = time.perf_counter()
    follower = Follower(lambda log, number, outcome: _print(_line(log, number, outcome)))
    follower.start()
    try:
        problem, code = _launch()
    finally:
        follower.stop()
        log = SweepLog.of_this_job()
        os.environ.pop(ENV, None)
    if log is None:  # Hydra only showed something
        return _say(problem, code) if problem else 0
    outcomes, plan = log.outcomes(), log.plan()
    if problem:
        from runners.rundir import remove_leftovers

        remove_leftovers(log.experiment_directory)
        if code != USAGE:
            kept = sum(outcome.state in report.WITH_RESULTS for outcome in outcomes)
            problem += f": {kept} of {plan['jobs']} runs are done and kept; the same command goes on with the rest."
        _say(problem, code)
    if code == INTERRUPTED or (problem and not outcomes):
        return code
    report.sweep_table(outcomes, plan, time.perf_counter() - started)
    if any(outcome.other_code for outcome in outcomes):
        _print(OTHER_CODE)
    if not plan["jobs"]:
        _print("Every combination asked for is one that the figure does not have; exclude=[] runs it all the same.")
    _print(shown(log.experiment_directory / "runs"))
    return code or _exit_code(outcomes)


def _launch() -> tuple[str, int]:
    """Let Hydra run all jobs; what kept it from that, if anything, and the exit code for it.

    Errors from before the first job are raised. Those of jobs are not seen here: they are outcomes.
    """
    try:
        _hydra(job_of_sweep)
    except KeyboardInterrupt:
        return "Interrupted", INTERRUPTED
    except Exception as error:
        if WITH_TRACEBACK or SweepLog.of_this_job() is None:
            raise
        if isinstance(error, WRONG_CONFIGURATION):
            return one_sentence(error), USAGE
        if is_lost_worker(error):
            return "A worker process was killed, perhaps for want of memory", FAILED
        return f"The launcher failed ({one_sentence(error)})", FAILED
    return "", 0


def _hydra(task: Callable[[DictConfig], None]) -> None:
    with interrupt.not_replaced():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="serve")(task)()


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    states = {outcome.state for outcome in outcomes}
    if State.FAILED in states:
        return FAILED
    return USAGE if State.INVALID in states else 0


def _line(log: SweepLog, number: int, outcome: Outcome) -> str:
    plan = log.plan()
    total = str(plan["jobs"])
    return report.line(outcome, plan["varying"], counter=f"[{number:{len(total)}d}/{total}]")


@contextlib.contextmanager
def _progress_bar() -> Iterator[Progress | None]:
    """A bar while requests are served, on a terminal only."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.progress import Progress as Bar

    with Bar(transient=True) as bar:
        serving = bar.add_task("serving", total=None)
        yield lambda done, total: bar.update(serving, completed=done, total=total)


def _print(text: str) -> None:
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as after `| head`; the jobs are no less wanted
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def _say(problem: str, code: int) -> int:
    sys.stderr.write(f"{problem}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
