"""`python -m runners.capacity`: how much a cluster can take, or how small it can be, before an SLO no longer holds.

Every probe is a run like those of runners.serve, found again by its configuration. Exit codes: 0 found, 1 a run failed,
2 wrong usage or configuration, 130 interrupted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from llumnix.errors import ConfigError
from runners import config, interrupt, provenance
from runners.bisection import last_that_holds
from runners.command_line import one_sentence
from runners.job import OUTPUTS, run
from runners.objective import Objective
from runners.outcome import State
from runners.report import capacity_table

CONF = Path(__file__).resolve().parent.parent / "conf"
NAME = "capacity"
FAILED, USAGE, INTERRUPTED = 1, 2, 130
REACH = 64
"""A search ends at this many times the number where it begins, and at a sixty-fourth of it."""
HELP = """Finds the highest request rate, or the fewest instances, at which an SLO still holds, by bisection over runs.

  python -m runners.capacity slo.ttft_p99_s=5                                  M-M trace, Llumnix
  python -m runners.capacity trace=s_l qps=4 scheduler=llumnix,infaas slo.ttft_p99_s=5       two schedulers
  python -m runners.capacity slo.ttft_s=2 slo.tpot_s=0.1 slo.attainment=0.95   95 % of requests within both limits
  python -m runners.capacity find=instances qps=7.5 scheduler=llumnix,infaas slo.ttft_p99_s=5    cost at equal P99

== What has to hold (all that is given) ==
  slo.<metric>_<statistic>_s   at most; metrics ttft, tpot, request_latency, prefill_latency, decode_latency, of one
                               class with normal_ or high_ before; statistics mean, p50, p80, p95, p99
  slo.ttft_s, slo.tpot_s       limits that each request should meet, and
  slo.attainment               the share of requests that have to (default 0.99)
== Search ==
  find      rate (default): the highest rate, which begins at qps; instances: the fewest, which begin at
            cluster.instances, at the rate qps
  step      resolution of rates in requests/s (default: a hundredth of qps)
  repeats   runs per probe, with arrivals moved by milliseconds; numbers are means over them (default 1)
== Everything else ==
  keys and options of runners.serve (python -m runners.serve --help); several values are compared: scheduler=a,b

Probes are kept in outputs/capacity/runs and not run again; force=true redoes them. A number that holds is followed by
the next one, which does not; near the limit one run differs from the next, which repeats=3 evens out.
Exit codes: 0 found, 1 a run failed, 2 wrong input, 130 interrupted.
"""

config.register()


class Find(StrEnum):
    """What is searched for, and the key that is varied."""

    rate = "rate"
    instances = "instances"


class RunFailed(Exception):  # noqa: N818  the message says it
    """A probe could not be run; the message says why."""


@dataclass(kw_only=True, slots=True)
class Question:
    """A parsed command line; `jobs` are lists of overrides, one for each combination of the values given."""

    objective: Objective
    jobs: list[list[str]]
    find: Find = Find.rate
    step: float | None = None
    repeats: int = 1

    @classmethod
    def parse(cls, words: Sequence[str]) -> Question:
        """Take the words of this program out and leave the rest to Hydra; ConfigError for wrong ones."""
        own: dict[str, str] = {}
        rest = []
        for word in words:
            key, equals, value = word.partition("=")
            if equals and (key in ("find", "step", "repeats") or key.startswith("slo.")):
                own[key] = value
            elif key in ("-m", "--multirun", "dry_run"):
                raise ConfigError(f"{word}: runners.capacity compares several values without -m, and has to run them.")
            else:
                rest.append(word)
        objective = Objective.parse({key.removeprefix("slo."): own[key] for key in own if key.startswith("slo.")})
        find = own.get("find", Find.rate)
        if find not in list(Find):
            raise ConfigError(f"find={find}: type find=rate or find=instances.")
        step = _positive("step", own["step"], float) if "step" in own else None
        repeats = int(_positive("repeats", own.get("repeats", "1"), int))
        if not any(word.startswith("name=") for word in rest):
            rest.append(f"name={NAME}")
        parsed = OverridesParser.create().parse_overrides(rest)
        jobs = [list(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        return cls(objective=objective, jobs=jobs, find=Find(find), step=step, repeats=repeats)


@dataclass(slots=True)
class Answer:
    """What was found for one job: the number at which all holds, None if there is none, and what was measured there.

    `unbounded`: the search met its own end before that of the objective.
    """

    settings: dict[str, str]
    number: float | None = None
    unbounded: bool = False
    probes: dict[float, dict[str, float]] = field(default_factory=dict)
    runs: int = 0


class Search:
    """The bisection for one job: numbers to probe, runs to make, and a line for each probe."""

    def __init__(self, question: Question, job: Sequence[str], settings: dict[str, str], counter: str) -> None:
        self._question = question
        self._counter = counter
        self._varied = "qps" if question.find is Find.rate else "cluster.instances"
        self._job = [override for override in job if not override.startswith(f"{self._varied}=")]
        self.answer = Answer(settings)
        begun = _composed(job)
        if begun.qps is None:
            raise ConfigError("A trace at its own times has no rate to ask for: give qps=N and leave out arrivals.")
        self._step = question.step or begun.qps / 100
        self._start = max(1, round(begun.qps / self._step))
        if question.find is Find.instances:
            self._step, self._start = 1, begun.cluster.instances

    def run(self) -> Answer:
        """Probe until the boundary is known. RunFailed or ConfigError if a probe cannot be run."""
        start, most, answer = self._start, REACH * self._start, self.answer
        if self._question.find is Find.rate:
            found = last_that_holds(self._holds, start, max(1, start // REACH), most)
            answer.unbounded = found == most
        else:
            failing = last_that_holds(lambda number: not self._holds(number), start, 1, most)
            found = None if failing == most else (failing or 0) + 1
        answer.number = None if found is None else self._value(found)
        return answer

    def _value(self, number: int) -> float:
        return float(f"{number * self._step:.9g}")  # 0.07 * 3 is to be the 0.21 that a person would type

    def _holds(self, number: int) -> bool:
        value, objective, repeats = self._value(number), self._question.objective, self._question.repeats
        started = time.perf_counter()
        override = f"{self._varied}={value:.9g}"
        found, states = [], set()
        for repeat in range(repeats):
            outcome = _run([*self._job, override, *([f"repeat={repeat}"] if repeats > 1 else [])])
            states.add(outcome[0])
            found.append(objective.measure(outcome[1]))
            self.answer.runs += outcome[0] is State.DONE
        means = {key: fmean(values[key] for values in found) for key in found[0]}
        holds = objective.holds(means)
        self.answer.probes[value] = means
        how = f"{time.perf_counter() - started:.2f} s" if State.DONE in states else str(State.SKIPPED)
        _print(f"{self._counter}{override}  {objective.show(means)}  {'holds' if holds else 'does not hold'}  {how}")
        return holds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(words):
        _print(HELP.rstrip())
        return 0
    try:
        question = Question.parse(words)
        with interrupt.not_replaced(), initialize_config_dir(str(CONF), version_base="1.3"):
            return _answer(question)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return _say(one_sentence(error), USAGE)
    except RunFailed as error:
        return _say(str(error), FAILED)
    except KeyboardInterrupt:
        return _say("Interrupted: finished runs are kept; the same command goes on from there.", INTERRUPTED)
    except OSError as error:
        return _say(f"Cannot write results: {one_sentence(error)}", FAILED)
    finally:
        HydraConfig.instance().cfg = None


def _answer(question: Question) -> int:
    jobs = question.jobs
    varying = [key for key in _settings(jobs[0]) if len({_settings(job).get(key) for job in jobs}) > 1]
    searches = []
    for place, job in enumerate(jobs, start=1):  # all are composed before the first runs
        settings = {key: value for key, value in _settings(job).items() if key in varying}
        words = [f"[{place}/{len(jobs)}]", *(f"{key}={value}" for key, value in settings.items())]
        searches.append(Search(question, job, settings, " ".join(words) + " " if len(jobs) > 1 else ""))
    answers = [search.run() for search in searches]
    capacity_table(answers, question.objective, question.find)
    _print(str(OUTPUTS / _composed(jobs[0]).name / "runs"))
    return 0


def _composed(overrides: Sequence[str]) -> DictConfig:
    """Compose a job as Hydra's main would, for runners.job.run; the dataclasses check it."""
    whole = compose("serve", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(whole)
    with open_dict(whole):
        del whole["hydra"]
    OmegaConf.to_object(whole)
    return whole


def _run(overrides: Sequence[str]) -> tuple[State, Path]:
    cfg = _composed(overrides)
    outcome = run(cfg, root=OUTPUTS / cfg.name, git=provenance.git())
    if outcome.state is State.INVALID:
        raise ConfigError(outcome.message)
    if outcome.state not in (State.DONE, State.SKIPPED):
        where = f" (failure.json in {outcome.directory})" if outcome.directory else ""
        raise RunFailed(f"{' '.join(overrides)}: {outcome.state}, {outcome.message}{where}")
    return outcome.state, Path(outcome.directory)


def _settings(job: Sequence[str]) -> dict[str, str]:
    return dict(override.lstrip("+").split("=", 1) for override in job if "=" in override)


def _positive(key: str, value: str, kind: type) -> Any:
    try:
        number = kind(value)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        raise ConfigError(f"{key} must be a positive {'whole ' if kind is int else ''}number, got {value}.")
    return number


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say(problem: str, code: int) -> int:
    sys.stderr.write(f"{problem}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
