"""One bare vLLM engine in a tight loop, driven over its standard input: what a cluster's instance is measured against.

Knows nothing of this project. Run as a program it is the engine; BareEngine is the handle of who starts it. The
argument is a JSON object of vLLM's EngineArgs. One line in, one line out: in, a list of [request id, prompt, max
tokens]; out, when the first was taken and the last had ended (wall-clock s), the output tokens, the steps, and the CPU
seconds of this process in between. The first line out says that the engine is up.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class BareEngineError(RuntimeError):
    """The process of a bare engine has ended."""


class BareEngine:
    """A process of this file and the pipes to it; what it says goes to the file `log`."""

    def __init__(self, arguments: dict[str, Any], environment: dict[str, str], log: Path) -> None:
        self._log = log
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.bare", json.dumps(arguments)],
                env={**os.environ, "PYTHONPATH": path, **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def send(self, requests: Sequence[tuple[str, Sequence[int], int]]) -> None:
        """Hand in a batch; `receive` returns what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        """Wait for the next line; BareEngineError if there is none to come."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BareEngineError(f"A bare engine ended:\n{self._log.read_text()[-3000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()


def main() -> None:
    """Start the engine, then serve one batch of requests a line until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints where our replies go
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1")
    from vllm import EngineArgs, SamplingParams
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor import Executor

    config = EngineArgs(**json.loads(sys.argv[1])).create_engine_config()
    core = EngineCore(config, Executor.get_class(config), log_stats=False)
    print(json.dumps({"pid": os.getpid()}), file=replies, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        cpu_s, started_s = time.process_time(), time.time()
        for request_id, prompt, max_tokens in asked:
            request = EngineCoreRequest(
                request_id=request_id,
                prompt_token_ids=prompt,
                mm_features=None,
                sampling_params=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
                pooling_params=None,
                arrival_time=started_s,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            )
            core.add_request(*core.preprocess_add_request(request))
        tokens = steps = 0
        while core.scheduler.has_requests() or core.batch_queue:
            outputs, executed = core.step_fn()
            core.post_step(executed)
            steps += 1
            for batch in (outputs or {}).values():
                tokens += sum(len(output.new_token_ids) for output in batch.outputs)
        reply = {
            "started_s": started_s,
            "ended_s": time.time(),
            "tokens": tokens,
            "steps": steps,
            "cpu_s": time.process_time() - cpu_s,
        }
        print(json.dumps(reply), file=replies, flush=True)
    core.shutdown()


if __name__ == "__main__":
    main()
