"""A fitted cost model as an option of the group conf/gpu, with the error of the fit above it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from llumnix.cluster.real.transport import CARRIERS, Distance
from llumnix.engines.sim.cost import StepCost
from llumnix.engines.sim.fit import RegionError

COPIES = ("copy_latency_ms", "last_copy_latency_ms", "copy_bandwidth_gb_s", "migration_step_ms", "control_ms")
"""Costs of migrations, which a profile of steps says nothing about."""


class Link(NamedTuple):
    """How long copies by a carrier took, as a line: latency_s + bytes / bandwidth."""

    carrier: str
    latency_s: float
    bandwidth_gb_s: float


def best_link(links: Iterable[Link]) -> Link | None:
    """The one that two instances of a node would take; None if there is none that reaches so far."""
    by_name = {link.carrier: link for link in links}
    return next((by_name[name] for name in CARRIERS[Distance.node] if name in by_name), None)


def gpu_yaml(
    name: str, label: str, model: str, cost: StepCost, errors: Iterable[RegionError], link: Link | None = None
) -> str:
    """The content of conf/gpu/<name>.yaml; costs that are zero, or that were not measured, are left out."""
    copies = {} if link is None else _copies(link)
    missing = ", ".join(key for key in COPIES if key not in copies)
    lines = [
        f"# {name}: step costs fitted by python -m runners.profile. Median error of a step:",
        *(
            f"#   {e.region}: {e.median:.1%} ({e.held_out:.1%} of steps left out of the fit), {e.steps} steps"
            for e in errors
        ),
        "# Copies were not measured." if link is None else f"# Copies: by {link.carrier}, within one process.",
        f"# Not measured here, and wanted to simulate migrations: {missing}.",
        f"name: {name}",
        f"label: {label}",
        "costs:",
        f"  {model}:",
    ]
    measured = {key: value for key, value in asdict(cost).items() if value and key not in COPIES}
    return "\n".join([*lines, *_lines(measured | copies, "    ")]) + "\n"


def _copies(link: Link) -> dict[str, float]:
    latency_ms = round(1000 * link.latency_s, 3)
    return {
        "copy_latency_ms": latency_ms,
        "last_copy_latency_ms": latency_ms,
        "copy_bandwidth_gb_s": round(link.bandwidth_gb_s, 1),
    }


def _lines(tree: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value}"
