"""A vLLM EngineCore in this process, stepped by whoever owns it, with live migration between steps.

It knows neither where other instances are nor how parcels get there. Everything that needs knowledge of vLLM's inside
is in scheduler.py and worker.py; what differs between versions is in versions.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from llumnix.engines.base import (
    Departure,
    EngineRequest,
    FinalState,
    KvIdentity,
    MigrationRefused,
    MovableRequest,
    Output,
    Parcel,
    Ready,
    StepResult,
)
from llumnix.engines.vllm import carriers, refusals, versions
from llumnix.engines.vllm.native import as_native
from llumnix.engines.vllm.options import VllmOptions
from llumnix.load import InstanceLoad
from llumnix.migration import AbortReason

log = logging.getLogger(__name__)

# The core runs in this process and thread: llumlets step it themselves. Read by vLLM when it makes its configuration.
_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}


class VllmEngine:
    """See llumnix.engines.base.Engine."""

    def __init__(self, options: VllmOptions, start: Callable[..., Any] | None = None) -> None:
        """Start an EngineCore; `start(options, with_migration=...)` makes another one than vLLM's own."""
        os.environ.update(_ENVIRONMENT)
        self._finding = versions.check()
        self._unsupported = self._finding.unsupported if options.migration else "it is switched off for this engine"
        self._core = (start or _start)(options, with_migration=self._unsupported is None)
        self._scheduler = self._core.scheduler
        if self._unsupported is None:
            self._unsupported = self._why_unsupported()
        if self._unsupported is None:
            log.info("vLLM %s: live migration is on", self._finding.version)
            carriers.sweep()
        else:
            log.warning("vLLM %s: no live migration, because %s", self._finding.version, self._unsupported)
        blocks = self._scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1  # vLLM never hands out block 0
        self._total_blocks = blocks
        self._watermark_blocks = int(options.watermark_fraction * blocks)
        self._requests: dict[str, EngineRequest] = {}
        self._native: dict[str, Any] = {}  # as vLLM's EngineCoreRequest
        self._emitted: dict[str, int] = {}  # tokens that have been put out, here and elsewhere
        self._flushing: list[tuple[EngineRequest, tuple[int, ...]]] = []
        self._lent: dict[str, list[Any]] = {}  # contents of the parcels that may be read just now, by request
        self._identity = self._make_identity(options) if self._unsupported is None else None
        self._block_bytes = max(self._core.collective_rpc("llumnix_block_bytes")) if self._unsupported is None else 0
        self._one_process = self._core.vllm_config.parallel_config.world_size == 1
        self._memory = self._export()

    # --- what it is

    @property
    def block_size_tokens(self) -> int:
        """Tokens per KV block."""
        return int(self._scheduler.block_size)

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block on one rank."""
        return self._block_bytes

    @property
    def migration_unsupported(self) -> str | None:
        """Why this engine takes part in no migration; None if it does."""
        return self._unsupported

    @property
    def carriers(self) -> tuple[str, ...]:
        """Names of the carriers that `read_blocks` accepts."""
        return ((carriers.CUDA_IPC,) if self._memory else ()) + tuple(carriers.CARRIERS)

    def carriers_from(self, departure: Departure) -> tuple[str, ...]:
        """Return the names of the carriers by which blocks of this departure can arrive; maps the source's memory."""
        if departure.memory and self._memory:
            mapped = self._core.collective_rpc("llumnix_map", args=(departure.memory,))
            if all(mapped):
                return (carriers.CUDA_IPC, *carriers.CARRIERS)
        return tuple(carriers.CARRIERS)

    @property
    def max_request_tokens(self) -> int:
        """Tokens that one request can have, prompt and output together."""
        return int(self._core.vllm_config.model_config.max_model_len)

    @property
    def core(self) -> Any:
        """vLLM's EngineCore, for those who measure it."""
        return self._core

    # --- serving

    def add(self, request: EngineRequest, generated: Sequence[int] = ()) -> None:
        """Queue a request; with `generated`, go on after these tokens. ValueError if it is too long for the model."""
        if len(request.prompt) + len(generated) >= self.max_request_tokens:
            raise ValueError(
                f"request {request.request_id} has {len(request.prompt) + len(generated)} tokens, "
                f"the engine takes fewer than {self.max_request_tokens}"
            )
        if request.request_id in self._scheduler.finished_req_ids:
            # Workers drop what they know of finished requests in the next step, by id.
            self._flushing.append((request, tuple(generated)))
            return
        native = self._remember(request, len(generated))
        inner, wave = self._core.preprocess_add_request(native)
        if not generated:
            self._core.add_request(inner, wave)
        elif self._unsupported is not None:
            self._forget(request.request_id)
            raise ValueError(f"a request cannot go on from its tokens here: {self._unsupported}")
        else:
            self._enter(native, inner, generated, 0, ())

    def abort(self, request_id: str) -> None:
        """Forget a request in whatever state it is."""
        if self._unsupported is None:
            self._scheduler.cancel(request_id)
        self._flushing = [entry for entry in self._flushing if entry[0].request_id != request_id]
        self._core.abort_requests([request_id])
        self._forget(request_id)

    def has_work(self) -> bool:
        """True if a step would do anything."""
        return bool(self._scheduler.has_requests() or self._core.batch_queue or self._flushing)

    def step(self) -> StepResult:
        """Run one step of the core; with asynchronous scheduling its outputs are those of an earlier one."""
        if not self.has_work():
            return StepResult()
        outputs, executed = self._core.step_fn()
        self._core.post_step(executed)
        result = StepResult(outputs=self._translate(outputs or {}))
        if self._unsupported is None:
            result.scheduled.update(self._scheduler.scheduled_tokens)
            result.preempted.extend(self._scheduler.preempted_ids)
            self._scheduler.scheduled_tokens = {}
            self._scheduler.preempted_ids = []
        flushing, self._flushing = self._flushing, []
        for request, generated in flushing:
            self.add(request, generated)
        return result

    def load(self, instance_id: int, *, draining: bool) -> InstanceLoad:
        """Report the present state. Waiting requests that hold their KV already ask for no memory."""
        scheduler = self._scheduler
        waiting = [request for queue in versions.waiting_queues(scheduler) for request in queue]
        asking = [request.num_tokens for request in waiting if request.num_computed_tokens == 0]
        return InstanceLoad(
            instance_id=instance_id,
            running=len(scheduler.running),
            waiting=len(waiting) + len(self._flushing),
            preempted=sum(r.num_preemptions > 0 and r.num_computed_tokens == 0 for r in waiting),
            high_priority=sum(r.priority < 0 for r in [*scheduler.running, *waiting]),
            free_blocks=int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks()),
            total_blocks=self._total_blocks,
            watermark_blocks=self._watermark_blocks,
            block_size_tokens=self.block_size_tokens,
            waiting_tokens=sum(asking),
            head_tokens=asking[0] if asking else 0,
            draining=draining,
        )

    def forget_prefixes(self) -> None:
        """Drop what prefix caching keeps."""
        self._core.reset_prefix_cache()

    def shutdown(self) -> None:
        """Stop the workers. vLLM then also takes down what all engines of this process share."""
        for request_id in list(self._lent):
            self._give_back(request_id)
        if self._unsupported is None:
            self._core.collective_rpc("llumnix_close")
            carriers.sweep()
        self._core.shutdown()

    # --- migration, source

    def movable(self) -> list[MovableRequest]:
        """Return the running requests that have made a token and can leave."""
        return self._movable([r for r in self._scheduler.running if r.num_output_tokens > 0])

    def queued(self) -> list[MovableRequest]:
        """Return the waiting requests that can leave, in queue order."""
        return self._movable([r for queue in versions.waiting_queues(self._scheduler) for r in queue])

    def refusal(self, request_id: str) -> str | None:
        """Return why a request cannot migrate; None if it can."""
        if self._unsupported is not None:
            return self._unsupported
        inner = self._scheduler.requests.get(request_id)
        if inner is None or inner.is_finished():
            return "it is not here"
        if request_id in self._scheduler.leaving:
            return "it is moving already"
        return refusals.of_request(inner)

    def depart(self, request_id: str) -> Departure:
        """Begin to move a request; raises MigrationRefused."""
        reason = self.refusal(request_id)
        if reason is not None or self._identity is None:
            raise MigrationRefused(reason or "this engine does not migrate")
        inner = self._scheduler.requests[request_id]
        self._scheduler.begin_leaving(request_id)
        return Departure(
            self._requests[request_id],
            tuple(inner.output_token_ids),
            versions.final_tokens(inner),
            self._identity,
            self._memory,
        )

    def held_blocks(self, request_id: str) -> int | AbortReason:
        """Return the blocks of a departing request, of which the last is still being written, or why it is off."""
        blocks: int | AbortReason = self._scheduler.leaving_blocks(request_id)
        return blocks

    def read_blocks(self, request_id: str, first_block: int, blocks: int, carrier: str) -> list[Parcel]:
        """Copy out final blocks, one parcel per rank; none if there is nothing to copy.

        Who asks for the next blocks of a request has no use for the parcels before: their memory is used again.
        """
        self._give_back(request_id)
        inner = self._scheduler.leaving[request_id].request
        written = -(-versions.final_tokens(inner) // self.block_size_tokens)
        block_ids = self._scheduler.block_ids(request_id)[first_block : min(first_block + blocks, written)]
        if not block_ids:
            return []
        parcels: list[Parcel] = self._core.collective_rpc("llumnix_read", args=(block_ids, carrier))
        if lent := carriers.lent(parcel.content for parcel in parcels):
            self._lent[request_id] = lent
        return parcels

    def freeze(self, request_id: str) -> None:
        """Take the request out of the batch; steps in flight still finish."""
        self._scheduler.freeze(request_id)

    def frozen_blocks(self, request_id: str) -> int | AbortReason | None:
        """Return the blocks of the frozen request; None while a step with it is in flight; or why it is off."""
        blocks: int | AbortReason | None = self._scheduler.frozen_blocks(request_id)
        return blocks

    def final_state(self, request_id: str) -> FinalState:
        """Describe the frozen request."""
        inner = self._scheduler.leaving[request_id].request
        states = self._core.collective_rpc("llumnix_sampler_state", args=(request_id,))
        return FinalState(request_id, tuple(inner.output_token_ids), int(inner.num_computed_tokens), tuple(states))

    def thaw(self, request_id: str) -> bool:
        """End the departure; the request goes on here as if nothing had happened. False if it is gone."""
        self._give_back(request_id)
        return bool(self._scheduler.thaw(request_id))

    def release(self, request_id: str) -> bool:
        """Forget the frozen request, which lives on elsewhere; False if it was aborted meanwhile."""
        self._give_back(request_id)
        alive = bool(self._scheduler.release(request_id))
        self._forget(request_id)
        return alive

    # --- migration, destination

    def reserve(self, departure: Departure, blocks: int) -> int:
        """Set the first `blocks` blocks aside; return how many are here already. Raises MigrationRefused."""
        request = departure.request
        self._check_arrival(departure, blocks)
        native = self._as_native(request)
        inner, _ = self._core.preprocess_add_request(native)
        if departure.generated:
            inner.append_output_token_ids(list(departure.generated))
        hit_blocks = self._scheduler.reserve(inner, blocks, self._watermark_blocks)
        if hit_blocks is None:
            raise MigrationRefused(f"there is no room for {blocks} blocks")
        self._requests[request.request_id] = request
        self._native[request.request_id] = native
        return int(hit_blocks)

    def extend(self, request_id: str, blocks: int) -> bool:
        """Set `blocks` more aside; False if there is no room."""
        return request_id in self._scheduler.arriving and bool(self._scheduler.extend(request_id, blocks))

    def expect(self, request_id: str) -> None:
        """Warm up for the request, if idle."""
        if self._unsupported is None and request_id in self._scheduler.arriving and not self.has_work():
            # The first step after a pause takes its processor longest. So there is one before, of no request, as vLLM's
            # data-parallel engines make when only others have work.
            self._core.execute_dummy_batch()

    def write_blocks(self, request_id: str, first_block: int, parcels: Sequence[Parcel]) -> Ready:
        """Fill reserved blocks from `first_block` on; a copy between GPUs goes on after the return."""
        if not parcels:
            return partial(_wait_for, ())
        block_ids = self._scheduler.block_ids(request_id)[first_block:]
        # Ranks in processes of their own have no event that could be waited for here.
        wait = not self._one_process
        copies = self._core.collective_rpc("llumnix_write", args=(block_ids, list(parcels)), kwargs={"wait": wait})
        return partial(_wait_for, copies)

    def commit(self, final: FinalState) -> None:
        """Go on with the request: the next step schedules exactly the tokens that have no KV."""
        arriving = self._scheduler.arriving.pop(final.request_id)
        inner = arriving.request
        self._emitted[final.request_id] = len(final.generated)
        self._core.collective_rpc("llumnix_settle")
        fresh = final.generated[inner.num_output_tokens :]
        self._enter(self._native[final.request_id], inner, fresh, final.computed_tokens, final.sampler)

    def cancel(self, request_id: str) -> None:
        """Free what was reserved."""
        if self._unsupported is None and request_id in self._scheduler.arriving:
            self._core.collective_rpc("llumnix_settle")
            self._scheduler.cancel(request_id)
            self._forget(request_id)

    # --- inside

    def _enter(
        self, native: Any, inner: Any, fresh: Sequence[int], computed_tokens: int, sampler: Sequence[Any]
    ) -> None:
        """Let a request with past tokens into the scheduler; `fresh` are those that `inner` does not have yet."""
        if fresh:
            inner.append_output_token_ids(list(fresh))
        generated = list(inner.output_token_ids)
        if computed_tokens > inner.num_tokens:
            raise ValueError(f"{native.request_id}: KV of {computed_tokens} tokens, but it has {inner.num_tokens}")
        if generated or computed_tokens:
            block_ids = self._scheduler.block_ids(native.request_id) if computed_tokens else []
            self._core.collective_rpc(
                "llumnix_seed", args=(native, generated, computed_tokens, block_ids, tuple(sampler))
            )
        self._scheduler.enter(inner, computed_tokens)

    def _check_arrival(self, departure: Departure, blocks: int) -> None:
        request_id = departure.request.request_id
        if self._unsupported is not None:
            raise MigrationRefused(self._unsupported)
        if departure.identity != self._identity:
            raise MigrationRefused(f"the engines are not alike: {_difference(departure.identity, self._identity)}")
        if request_id in self._scheduler.requests or request_id in self._scheduler.arriving:
            raise MigrationRefused("a request of this id is here already")
        if request_id in self._scheduler.finished_req_ids:
            # Workers drop what they know of finished requests in the next step, by id: it must not be the new one.
            raise MigrationRefused("it left this instance less than a step ago")
        if blocks > 0 and self._scheduler.seats_free() <= 0:
            raise MigrationRefused("as many requests are running as can run")

    def _movable(self, inner_requests: Sequence[Any]) -> list[MovableRequest]:
        found = []
        for inner in inner_requests:
            request = self._requests.get(inner.request_id)
            if request is not None and self.refusal(inner.request_id) is None:
                found.append(
                    MovableRequest(request.request_id, request.priority, request.arrival_order, int(inner.num_tokens))
                )
        return found

    def _translate(self, outputs: dict[int, Any]) -> list[Output]:
        translated = []
        for output in (output for batch in outputs.values() for output in batch.outputs):
            request_id = output.request_id
            first_index = self._emitted.get(request_id, 0)
            self._emitted[request_id] = first_index + len(output.new_token_ids)
            finish_reason = None if output.finish_reason is None else str(output.finish_reason)
            translated.append(
                Output(
                    request_id,
                    first_index,
                    list(output.new_token_ids),
                    finish_reason,
                    output.stop_reason,
                    output.new_logprobs,
                )
            )
            if finish_reason is not None:
                self._forget(request_id)
        return translated

    def _remember(self, request: EngineRequest, emitted: int) -> Any:
        native = self._as_native(request)
        self._requests[request.request_id] = request
        self._native[request.request_id] = native
        self._emitted[request.request_id] = emitted
        return native

    def _forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)
        self._native.pop(request_id, None)
        self._emitted.pop(request_id, None)

    def _as_native(self, request: EngineRequest) -> Any:
        eos_token_id = self._core.vllm_config.model_config.hf_config.eos_token_id
        return as_native(request, self.max_request_tokens, eos_token_id)

    def _why_unsupported(self) -> str | None:
        reason = refusals.of_engine(self._core)
        if reason is not None:
            return reason
        try:
            self._core.collective_rpc("llumnix_layout")
        except ValueError as error:
            return str(error)
        return None

    def _make_identity(self, options: VllmOptions) -> KvIdentity:
        config = self._core.vllm_config
        kv_dtype, shapes = self._core.collective_rpc("llumnix_layout")[0]
        weights = f"{config.model_config.model} ({config.load_config.load_format}, seed {config.model_config.seed})"
        return KvIdentity(
            model=weights,
            dtype=str(config.model_config.dtype),
            kv_dtype=kv_dtype,
            block_size_tokens=self.block_size_tokens,
            layer_shapes=shapes,
            tensor_parallel=options.tensor_parallel,
            max_model_tokens=self.max_request_tokens,
        )

    def _export(self) -> tuple[Any, ...]:
        """Return what each rank of another engine needs to read this one's memory; empty if any rank has nothing."""
        if self._unsupported is not None:
            return ()
        exports = tuple(self._core.collective_rpc("llumnix_export"))
        return exports if all(export is not None for export in exports) else ()

    def _give_back(self, request_id: str) -> None:
        """Let the ranks use the memory of a request's parcels again."""
        if lent := self._lent.pop(request_id, None):
            self._core.collective_rpc("llumnix_give_back", args=(lent,))


def _start(options: VllmOptions, *, with_migration: bool) -> Any:
    """Start an EngineCore: with stock scheduler and worker, or with ours over them."""
    arguments = versions.watermark(options.watermark_fraction) | options.engine_arguments()
    if with_migration:
        arguments["worker_extension_cls"] = "llumnix.engines.vllm.worker.LlumnixWorker"
    config = versions.lookup("vllm.EngineArgs")(**arguments).create_engine_config()
    if with_migration:
        # Set on the finished configuration, which knows whether vLLM schedules asynchronously on this platform.
        name = "MigratingAsyncScheduler" if config.scheduler_config.async_scheduling else "MigratingScheduler"
        config.scheduler_config.scheduler_cls = f"llumnix.engines.vllm.scheduler.{name}"
    executor = versions.lookup("vllm.v1.executor.Executor").get_class(config)
    return versions.lookup("vllm.v1.engine.core.EngineCore")(config, executor, log_stats=False)


def _wait_for(copies: Sequence[Any]) -> None:
    for copied in copies:
        if copied is not None:
            copied.synchronize()


def _difference(theirs: KvIdentity, ours: KvIdentity | None) -> str:
    """Name the fields that differ, with both values."""
    names = [
        field.name for field in fields(KvIdentity) if getattr(theirs, field.name) != getattr(ours, field.name, None)
    ]
    return ", ".join(f"{name} is {getattr(ours, name, None)} here and {getattr(theirs, name)} there" for name in names)
