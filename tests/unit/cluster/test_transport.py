"""Which carrier the blocks take."""

from __future__ import annotations

import pytest

from llumnix.cluster.real.transport import Distance, choose_carrier, distance

ALL = ("inline", "shared_memory", "cuda_ipc")


@pytest.mark.parametrize(
    ("place", "process", "apart"),
    [("n", "n:1", Distance.process), ("n", "n:2", Distance.node), ("m", "m:1", Distance.network)],
)
def test_distance(place: str, process: str, apart: Distance) -> None:
    assert distance("n", "n:1", place, process) is apart


@pytest.mark.parametrize(
    ("there", "apart", "chosen"),
    [
        (ALL, Distance.network, "inline"),
        (ALL, Distance.node, "cuda_ipc"),
        (("inline", "shared_memory"), Distance.node, "shared_memory"),
        (ALL, Distance.process, "cuda_ipc"),
        (("shared_memory", "inline"), Distance.process, "inline"),
        (("other",), Distance.node, None),
    ],
)
def test_the_best_common_carrier_that_goes_far_enough(there: tuple[str, ...], apart: Distance, chosen: str) -> None:
    assert choose_carrier(ALL, there, apart) == chosen
