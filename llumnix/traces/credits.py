"""Whom to credit for a trace, as its licence asks. Shown wherever a trace file is described."""

from __future__ import annotations

CREDITS = {
    "Azure": "Azure LLM inference traces: Patel et al., Splitwise, ISCA'24 (CC-BY-4.0); Nanoflow lengths (Apache-2.0)",
    "BurstGPT": "BurstGPT: Wang et al., KDD'25 (CC-BY-4.0)",
    "Vidur": "Vidur: Agrawal et al., MLSys'24 (MIT)",
    "Splitwise-sim": "Splitwise-sim: Patel et al., ISCA'24 (MIT)",
    "Mooncake": "Mooncake: Qin et al., FAST'25 (Apache-2.0)",
}
"""First word of a format's name -> sentence."""


def credit(format_name: str) -> str | None:
    """Whom to credit for a file of this format, None where that is not known."""
    return CREDITS.get(format_name.split()[0])
