"""The steps of a real engine, measured one by one: the table that a cost model is fitted on.

A row holds what a step worked on and how long it took. Two kinds of source give the same rows: an engine whose steps
are timed, and a profile of single layers that are added up (llumnix.engines.sim.layers).
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import pyarrow as pa

from llumnix.request import FloatArray

PROFILE = pa.schema(
    [
        pa.field("prefill_requests", pa.int32(), nullable=False),  # prompts, or parts of them, in this step
        pa.field("prefill_tokens", pa.int64(), nullable=False),  # of them that this step computes
        pa.field("prefill_context_tokens", pa.int64(), nullable=False),  # of them that had KV before, summed
        pa.field("prefill_pairs", pa.int64(), nullable=False),  # see `pairs`, summed
        pa.field("decode_requests", pa.int32(), nullable=False),
        pa.field("decode_context_tokens", pa.int64(), nullable=False),  # KV they read, the new token included, summed
        pa.field("step_s", pa.float64(), nullable=False),  # from the start of this step to the start of the next
    ]
)


FITTED = PROFILE.append(pa.field("fitted_s", pa.float64()))
"""The table with the time that the fitted cost model gives each step; empty where a row was not used."""


class Region(StrEnum):
    """What a step is made of. Each has coefficients of its own, since attention over both costs more than its parts."""

    decode = "decode"
    prefill = "prefill"
    mixed = "mixed"


def pairs(chunk_tokens: int, context_tokens: int) -> int:
    """How many (query, key) pairs causal attention looks at for a chunk behind `context_tokens` tokens: its work."""
    return chunk_tokens * context_tokens + chunk_tokens * (chunk_tokens + 1) // 2


def in_region(region: Region, prefill_requests: FloatArray, decode_requests: FloatArray) -> np.ndarray:
    """Which rows belong to `region`, as booleans."""
    prefills, decodes = prefill_requests > 0, decode_requests > 0
    match region:
        case Region.decode:
            return decodes & ~prefills
        case Region.prefill:
            return prefills & ~decodes
        case Region.mixed:
            return prefills & decodes
