"""A vLLM core of real schedulers over a worker on paper, for what no CPU runs: steps ahead, and model runner V2.

The worker's "KV" is the tokens themselves, in blocks, and its next token is a hash of all that it reads there, so that
KV in a wrong place cannot pass. It keeps of each request what vLLM's model runners keep. Works on vLLM 0.26 and 0.32.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from driver import BLOCK
from vllm.config import CacheConfig, DeviceConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from llumnix.engines.base import Parcel
from llumnix.engines.vllm.options import VllmOptions


@dataclass(slots=True)
class Known:
    """What the worker knows of a request; `draws` stands for the state of its generator (V1 only)."""

    tokens: list[int]
    prompt_tokens: int
    computed: int
    blocks: list[int]
    seeded: bool
    draws: int = 0


class PaperWorker:
    """Takes scheduler outputs as model runner V1 or V2 does; a request it was not told of is a KeyError."""

    def __init__(self, runner: int) -> None:
        self.runner = runner
        self.known: dict[str, Known] = {}
        self.memory: dict[int, list[int | None]] = {}
        self.batch: set[str] = set()
        self.closed = False

    def execute(self, output: Any) -> ModelRunnerOutput:
        forgotten = set(output.finished_req_ids)
        if self.runner == 2:
            forgotten |= set(output.preempted_req_ids or ())
        for request_id in forgotten:
            self.known.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            tokens = list(new.prefill_token_ids if self.runner == 2 else new.prompt_token_ids)
            seeded = new.sampling_params.seed is not None
            self.known[new.req_id] = Known(
                tokens, len(new.prompt_token_ids), new.num_computed_tokens, list(new.block_ids[0]), seeded
            )
        cached = output.scheduled_cached_reqs
        for i, request_id in enumerate(cached.req_ids):
            known, new_blocks = self.known[request_id], cached.new_block_ids[i]
            known.computed = cached.num_computed_tokens[i]
            if request_id in cached.resumed_req_ids:
                known.blocks = list(new_blocks[0])
            elif new_blocks is not None:
                known.blocks += new_blocks[0]
            generated = cached.num_output_tokens[i]
            if self.runner == 1 and request_id not in self.batch and generated > 0:
                outputs = list(cached.all_token_ids[request_id][-generated:])
                known.tokens = known.tokens[: known.prompt_tokens] + outputs
        self.batch = set(output.num_scheduled_tokens)
        sampled = [self._compute(self.known[i], n) for i, n in output.num_scheduled_tokens.items()]
        ids = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=ids, req_id_to_index={i: at for at, i in enumerate(ids)}, sampled_token_ids=sampled
        )

    def _compute(self, known: Known, tokens: int) -> list[int]:
        end = known.computed + tokens
        assert end <= len(known.tokens), "asked to compute tokens that nobody has sampled yet"
        for at in range(known.computed, end):
            self.memory.setdefault(known.blocks[at // BLOCK], [None] * BLOCK)[at % BLOCK] = known.tokens[at]
        if end < len(known.tokens):
            return []
        read = [self.memory[known.blocks[at // BLOCK]][at % BLOCK] for at in range(end)]
        # V1 draws from a generator that moves on; V2's randomness is a function of seed and position.
        noise = (known.draws if self.runner == 1 else end) if known.seeded else None
        known.draws += 1
        token = 3 + zlib.crc32(repr((read, noise)).encode()) % 997
        known.tokens.append(token)
        return [token]

    # --- what llumnix.engines.vllm.worker does on real memory

    def llumnix_layout(self) -> tuple[str, tuple[tuple[int, ...], ...]]:
        return "paper", ((BLOCK,),)

    def llumnix_read(self, block_ids: Sequence[int], carrier: str) -> Parcel:
        return Parcel(carrier, len(block_ids), [list(self.memory[block]) for block in block_ids])

    def llumnix_block_bytes(self) -> int:
        return 1

    def llumnix_export(self) -> None:
        return None

    def llumnix_settle(self) -> None:
        pass

    def llumnix_close(self) -> None:
        self.closed = True

    def llumnix_write(self, block_ids: Sequence[int], parcels: Sequence[Parcel], *, wait: bool) -> None:
        for block, tokens in zip(block_ids, parcels[0].content, strict=False):
            self.memory[block] = list(tokens)

    def llumnix_sampler_state(self, request_id: str) -> int | None:
        return self.known[request_id].draws if self.runner == 1 else None

    def llumnix_seed(
        self, native: Any, generated: Sequence[int], computed: int, blocks: Sequence[int], states: Sequence[Any]
    ) -> None:
        if self.runner == 1:
            tokens = [*native.prompt_token_ids, *generated]
            draws = states[0] if states and states[0] is not None else len(generated)
            seeded = native.sampling_params.seed is not None
            self.known[native.request_id] = Known(
                tokens, len(native.prompt_token_ids), computed, list(blocks), seeded, draws
            )


class PaperCore:
    """As much of an EngineCore as our engine uses, with up to two steps in flight."""

    def __init__(self, config: VllmConfig, kv_cache: KVCacheConfig, runner: int) -> None:
        from llumnix.engines.vllm.scheduler import MigratingAsyncScheduler

        self.vllm_config = config
        self.scheduler = MigratingAsyncScheduler(
            vllm_config=config,
            kv_cache_config=kv_cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
            log_stats=False,
        )
        self.scheduler.use_v2_model_runner = runner == 2
        self.worker = PaperWorker(runner)
        self.batch_queue: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self.dummy_batches = 0

    def preprocess_add_request(self, native: EngineCoreRequest) -> tuple[Request, int]:
        return Request.from_engine_core_request(native, None), 0

    def add_request(self, request: Request, wave: int) -> None:
        self.scheduler.add_request(request)

    def abort_requests(self, request_ids: list[str]) -> None:
        self.scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ABORTED)

    def collective_rpc(
        self, method: str, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> list[Any]:
        return [getattr(self.worker, method)(*args, **(kwargs or {}))]

    def step_fn(self) -> tuple[dict[int, EngineCoreOutputs], bool]:
        if self.scheduler.has_requests():
            output = self.scheduler.schedule()
            self.batch_queue.appendleft((output, self.worker.execute(output)))
            if len(self.batch_queue) < 2 and output.total_num_scheduled_tokens:
                return {}, True
        if not self.batch_queue:
            return {}, False
        return self.scheduler.update_from_output(*self.batch_queue.pop()), True

    def post_step(self, executed: bool) -> None:
        pass

    def execute_dummy_batch(self) -> None:
        assert not self.batch_queue
        self.dummy_batches += 1

    def shutdown(self) -> None:
        assert self.worker.closed, "what outlives the worker is still there"


def _configuration(options: VllmOptions) -> VllmConfig:
    """Return a configuration made by hand: EngineArgs would ask for a device, which a build for GPUs has not here."""
    config = VllmConfig(
        model_config=ModelConfig(
            model=options.model, skip_tokenizer_init=True, dtype="float32", max_model_len=options.max_model_tokens
        ),
        scheduler_config=SchedulerConfig(
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            max_model_len=options.max_model_tokens or 0,
            policy="priority",
            is_encoder_decoder=False,
        ),
        cache_config=CacheConfig(block_size=BLOCK, enable_prefix_caching=False),
        device_config=DeviceConfig(device="cpu"),
    )
    config.scheduler_config.async_scheduling = True
    config.cache_config.num_gpu_blocks = options.kv_blocks
    return config


def start_on_paper(runner: int) -> Any:
    """Return what VllmEngine takes to start its core."""

    def start(options: VllmOptions, *, with_migration: bool) -> PaperCore:
        assert with_migration
        config = _configuration(options)
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
        groups = [KVCacheGroupSpec(["layer"], spec)]
        cache = KVCacheConfig(num_blocks=options.kv_blocks or 0, kv_cache_tensors=[], kv_cache_groups=groups)
        return PaperCore(config, cache, runner)

    return start
