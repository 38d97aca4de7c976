"""`python -m runners.profile`: fit the simulator's cost model to measured steps, and try it on recorded requests.

The steps are those of a real engine that is started here, or come from files. Exit codes: 0 done, 1 it cannot be
written, 2 wrong usage, configuration or files, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from llumnix.errors import ConfigError
from runners import config, interrupt, profile_engine, profile_from
from runners.command_line import is_multirun, one_sentence

FAILED, USAGE, INTERRUPTED = 1, 2, 130
HELP = """Fits the cost model of the simulated engine: to a real engine, measured now, or to a profile that is there.

  python -m runners.profile engine=vllm_gpu model=llama_7b gpu=h100     measures one engine on this GPU, then fits
  python -m runners.profile engine=vllm_cpu model=tiny gpu=cpu kv_blocks=400 block_size_tokens=32 max_num_seqs=32
  python -m runners.profile from=DIR                             a profile of layers of Llama-3.1-8B
  python -m runners.profile from=DIR kv_blocks=2588              and requests.jsonl beside it, replayed with this memory
  python -m runners.profile from=steps.csv model=llama_7b        a table of whole steps
  python -m runners.profile from=DIR model.layers=64 name=mine   another model, another name for the results

== An engine to measure ==
  engine      vllm_gpu: graphs for decode steps, without torch.compile; vllm: vLLM's defaults; vllm_cpu: the tiny model
  kv_blocks   of its KV cache (default: what vLLM finds room for); steps that do not fit are left out, which is said
  repeats     of each step, of which the median counts (default 5)
  limit_s     seconds after which no more steps are measured (default 180); those that tell most come first
  name        as below (default: GPU and model)
  Interrupted, it keeps what was measured until then: from=outputs/profile/<name> fits it.
== A profile that is there ==
  from        a directory with dense.csv, per_sequence.csv and attention.csv (also in one folder below), or with
              steps.parquet; or a table of steps, .parquet or .csv, with the columns of llumnix/profile.py;
              docs/simulator.md has the formats, docs/profiling.md what may be different in them
  model       whose profile it is (default: the one that a folder is named after, or llama31_8b); a profile of layers
              needs its number of layers, model.layers
  name        of the GPU option and of outputs/profile/<name>/ (default: the name of the directory or file)
== The engine that served requests.jsonl, by default as vLLM V1 sets it ==
  kv_blocks                of its KV cache; needed where it was ever full and timeseries.csv does not show it
  block_size_tokens        16
  max_num_seqs             256, or what timeseries.csv shows
  max_num_batched_tokens   2048
  engine.async_scheduling, engine.prefix_caching   true
== Everything else ==
  keys and options of runners.serve (python -m runners.serve --help)

Written to outputs/profile/<name>/: steps.parquet, fit.parquet, and gpu/<name>.yaml, which --config-dir makes an option
of runners.serve; to outputs/ground_truth/<name>/ what python -m analysis.plot fig=ground_truth draws.
Exit codes: 0 done, 1 cannot be written, 2 wrong input.
"""

config.register()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not {"-h", "--help"}.isdisjoint(words):
        sys.stdout.write(HELP)
        return 0
    if is_multirun(words):
        return _say("runners.profile fits one profile at a time: leave out -m.", USAGE)
    given = {word.partition("=")[0] for word in words}
    if not given & {"from", "engine"}:
        return _say(
            "Which profile? Type engine=vllm_gpu or from=DIR; python -m runners.profile --help explains.", USAGE
        )
    from rich.console import Console

    plain = not sys.stdout.isatty()
    console = Console(highlight=False, markup=False, soft_wrap=plain, width=200 if plain else None)
    try:
        with interrupt.not_replaced():
            for part in profile_from.run(words) if "from" in given else profile_engine.run(words):
                console.print(part)
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        return _say(one_sentence(error), USAGE)
    except KeyboardInterrupt:
        return _say("Interrupted.", INTERRUPTED)
    except OSError as error:
        return _say(f"Cannot write results: {one_sentence(error)}", FAILED)
    return 0


def _say(problem: str, code: int) -> int:
    sys.stderr.write(f"{problem}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
