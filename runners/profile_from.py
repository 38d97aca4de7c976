"""`python -m runners.profile from=PATH`: fit the cost model to a profile that is there, and try it on real requests.

PATH is a directory with a profile of layers (dense.csv, per_sequence.csv, attention.csv), or a table of steps with the
columns of llumnix.profile.PROFILE: a .parquet or .csv file, or a directory with steps.parquet, or with what was
measured until an engine was interrupted. profile.json beside it says which model it was. The fit is written to
outputs/profile/<name>/. requests.jsonl beside the profile is replayed on the simulated engine, and both its times are
written to outputs/ground_truth/<name>/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llumnix import ground_truth, profile, record
from llumnix.cluster.replay import replay
from llumnix.cluster.spec import ClusterSpec
from llumnix.engines.sim.cost import CostModel, StepCost
from llumnix.engines.sim.fit import fit_steps
from llumnix.engines.sim.spec import SimEngine
from llumnix.errors import ConfigError
from llumnix.recorded_limits import NEARLY_FULL_PERCENT, TIMESERIES
from runners.gpu_file import best_link, gpu_yaml
from runners.profile_source import STEPS, Source

if TYPE_CHECKING:
    from rich.console import RenderableType

OUTPUTS, REPLAYS = Path("outputs") / "profile", Path("outputs") / "ground_truth"
FIT, GROUND_TRUTH = "fit.parquet", "ground_truth.parquet"


def run(words: Sequence[str]) -> Iterator[RenderableType | str]:
    """Fit, write, replay; everything that is to be said, in order."""
    from runners.profile_tables import error_table

    source = Source.parse(words)
    steps, dense, said = source.steps()
    fit = fit_steps(steps, dense)
    cluster, model = source.settings.cluster, source.settings.model
    directory = OUTPUTS / source.name
    (directory / "gpu").mkdir(parents=True, exist_ok=True)
    about = {"model": model.name, "kv_blocks": cluster.kv_blocks, "source": source.profile.name}
    record.write_table(directory / STEPS, profile.PROFILE, steps, about)
    fitted = {**steps, "fitted_s": fit.fitted_s}
    record.write_table(directory / FIT, profile.FITTED, fitted, about)
    cost = replace(fit.cost, kv_blocks=cluster.kv_blocks or 0)
    gpu_file = directory / "gpu" / f"{source.name}.yaml"
    with record.replacing(gpu_file) as temporary:
        link = best_link(source.links())
        temporary.write_text(gpu_yaml(source.name, source.label, model.name, cost, fit.errors, link), encoding="utf-8")
    yield f"{source.profile}: {len(steps['step_s']):,} steps"
    yield from said
    yield error_table(fit.errors)
    yield f"{gpu_file}"
    yield (
        f"use it: python -m runners.serve --config-dir {directory} gpu={source.name} model={model.name} "
        f"engine.batching=chunked"
    )
    if source.requests is not None:
        yield ""
        yield from _replay(source, source.requests, cost, about)


def _replay(source: Source, requests: Path, cost: StepCost, about: dict[str, Any]) -> Iterator[RenderableType | str]:
    """Serve the recorded requests on the simulated engine, and say how near that comes."""
    from runners.profile_tables import replay_table

    recording = ground_truth.read(requests)
    cluster, engine = replace(source.settings.cluster, instances=1), source.settings.engine
    limits, fullest = source.limits, source.limits.fullest_percent
    if limits.kv_blocks is not None:
        yield f"{TIMESERIES} shows that the KV cache had {limits.kv_blocks:,} blocks; kv_blocks=N changes that."
    if limits.max_num_seqs is not None:
        yield f"{TIMESERIES} shows that {limits.max_num_seqs:,} requests ran at most; max_num_seqs=N changes that."
    if cluster.kv_blocks is None:
        if fullest is None or fullest > NEARLY_FULL_PERCENT:
            used = "how full it was is not known" if fullest is None else f"it was {fullest:.0f} % full"
            yield f"requests.jsonl is not replayed: the size of the KV cache matters, since {used}; type kv_blocks=N."
            return
        cluster = replace(cluster, kv_blocks=_enough(recording, cluster))
        yield f"The KV cache was never more than {fullest:.0f} % full: replayed with as many blocks as it takes."
    if not isinstance(engine, SimEngine):
        raise ConfigError(f"engine={engine.name} replays nothing: leave it at engine=sim.")
    columns = replay(recording, cluster, engine, CostModel(cost, source.settings.model.kv_bytes_per_token))
    path = REPLAYS / source.name / GROUND_TRUTH
    path.parent.mkdir(parents=True, exist_ok=True)
    record.write_table(path, ground_truth.GROUND_TRUTH, columns, about)
    yield from replay_table(columns)
    yield f"{path}; to draw it: python -m analysis.plot fig=ground_truth"


def _enough(recording: ground_truth.Recording, cluster: ClusterSpec) -> int:
    """Blocks for all requests at once."""
    asked = recording.workload
    return int(np.sum(-(-(asked.prompt_tokens + asked.output_tokens) // cluster.block_size_tokens)))
