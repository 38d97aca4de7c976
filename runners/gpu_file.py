"""A fitted cost model as an option of the group conf/gpu, with the error of the fit above it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from llumnix.engines.sim.cost import StepCost
from llumnix.engines.sim.fit import RegionError

COPIES = ("copy_latency_ms", "last_copy_latency_ms", "copy_bandwidth_gb_s", "migration_step_ms", "control_ms")
"""Costs of migrations, which a profile of steps says nothing about."""


def gpu_yaml(name: str, model: str, cost: StepCost, errors: Iterable[RegionError]) -> str:
    """The content of conf/gpu/<name>.yaml; costs that are zero, or that were not measured, are left out."""
    lines = [
        f"# {name}: step costs fitted by python -m runners.profile. Median error of a step:",
        *(
            f"#   {e.region}: {e.median:.1%} ({e.held_out:.1%} of steps left out of the fit), {e.steps} steps"
            for e in errors
        ),
        "# Copies were not measured: to simulate migrations set " + ", ".join(COPIES) + ".",
        f"name: {name}",
        f"label: {name}",
        "costs:",
        f"  {model}:",
    ]
    measured = {key: value for key, value in asdict(cost).items() if value and key not in COPIES}
    return "\n".join([*lines, *_lines(measured, "    ")]) + "\n"


def _lines(tree: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value}"
