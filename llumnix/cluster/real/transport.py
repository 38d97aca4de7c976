"""How KV blocks travel between two instances: the best carrier that both engines have and that goes far enough.

The engines pack and unpack; a parcel's content is an argument of the call from the source's actor to the
destination's. Large arguments go through Ray's object store, from node to node. Neither the driver nor the global
scheduler sees a block.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from enum import StrEnum


class Distance(StrEnum):
    """Where two instances are, relative to each other."""

    process = "process"
    node = "node"
    network = "network"


CARRIERS = {
    Distance.process: ("cuda_ipc", "inline", "shared_memory"),
    Distance.node: ("cuda_ipc", "shared_memory", "inline"),
    Distance.network: ("inline",),
}
"""Names of Engine.carriers that reach so far, the best first."""

NAMES = frozenset(name for names in CARRIERS.values() for name in names)

BY_NAME = frozenset({"cuda_ipc", "shared_memory"})
"""Carriers whose parcels only name where the blocks are: the source keeps that as long as somebody may still read."""

BESIDE_STEPS = frozenset({"cuda_ipc"})
"""Carriers that copy while both sides go on with their steps."""

PIECE_BYTES = 16 << 20
"""What is read or written in one go, between two steps, where it goes through the host."""


def here(node: str) -> tuple[str, str]:
    """Name the node and the process, for `distance`. `node` is Ray's name of it.

    Processes that one Ray node has started share files in memory, and GPUs. A host's name would not tell: two
    containers can have it in common, and nothing else.
    """
    return node, f"{node}:{os.getpid()}"


def distance(place: str, process: str, other_place: str, other_process: str) -> Distance:
    """Tell how far apart two instances are."""
    if process == other_process:
        return Distance.process
    return Distance.node if place == other_place else Distance.network


def choose_carrier(source: Collection[str], destination: Collection[str], apart: Distance) -> str | None:
    """Return the best carrier that both sides have and that goes far enough; None if there is none."""
    return next((name for name in CARRIERS[apart] if name in source and name in destination), None)
