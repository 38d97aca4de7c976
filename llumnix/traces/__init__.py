"""Where request lengths come from: generated, fitted to published percentiles, or read from a real trace.

Knows nothing about arrival processes (llumnix.arrivals) or about how requests are served.
"""

from llumnix.traces.base import Lengths, Stream, Streams, Trace
from llumnix.traces.file import FileTrace, TooLong
from llumnix.traces.fixed import FixedTrace
from llumnix.traces.generated import GeneratedTrace
from llumnix.traces.quantile import QuantileTable, QuantileTrace
from llumnix.traces.superposed import SuperposedTrace

__all__ = [
    "FileTrace",
    "FixedTrace",
    "GeneratedTrace",
    "Lengths",
    "QuantileTable",
    "QuantileTrace",
    "Stream",
    "Streams",
    "SuperposedTrace",
    "TooLong",
    "Trace",
]
