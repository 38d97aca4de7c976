"""The watch over standstills of the process, by one that is made."""

from __future__ import annotations

import os
import subprocess
import time

from standstill import Standstill


def test_a_standstill_is_measured() -> None:
    pause = f"sleep 0.1; kill -STOP {os.getpid()}; sleep 0.4; kill -CONT {os.getpid()}"
    with Standstill() as standstill, subprocess.Popen(["sh", "-c", pause]):
        time.sleep(0.7)
    assert standstill.longest_s > 0.3
