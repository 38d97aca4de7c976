"""vLLM's schedulers with live migration: a request can leave the batch, and one can join it with its KV in place.

Loaded by vLLM through `scheduler_cls`. Every method here is called between two steps, by the thread that steps the
engine. A request that leaves is taken out of vLLM's queues but stays in `requests`, so that steps in flight still
deliver to it, an abort still finds it, and nothing can preempt it. A request that arrives only holds blocks until it is
committed: not being in `requests`, it can be neither scheduled nor preempted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llumnix.engines.vllm import versions
from llumnix.migration import AbortReason

_status: Any = versions.lookup("vllm.v1.request.RequestStatus")
_Scheduler: Any = versions.lookup("vllm.v1.core.sched.scheduler.Scheduler")
_AsyncScheduler: Any = versions.lookup("vllm.v1.core.sched.async_scheduler.AsyncScheduler")


@dataclass(slots=True)
class Leaving:
    """A request on its way out; `preemptions` is its count when it began to leave."""

    request: Any
    preemptions: int
    frozen: bool = False


@dataclass(slots=True)
class Arriving:
    """A request on its way in, with blocks for `blocks` blocks' worth of tokens set aside."""

    request: Any
    blocks: int


class Migrating:
    """Mixin over a vLLM scheduler."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.leaving: dict[str, Leaving] = {}
        self.arriving: dict[str, Arriving] = {}
        self.scheduled_tokens: dict[str, int] = {}
        self.preempted_ids: list[str] = []

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule as vLLM does, and note what was scheduled and who was preempted."""
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self.scheduled_tokens = dict(output.num_scheduled_tokens)
        self.preempted_ids.extend(output.preempted_req_ids or ())
        return output

    # --- source

    def begin_leaving(self: Any, request_id: str) -> None:
        """Watch a request from now on; nothing changes for it yet."""
        request = self.requests[request_id]
        self.leaving[request_id] = Leaving(request, request.num_preemptions)

    def leaving_blocks(self: Any, request_id: str) -> int | AbortReason:
        """Return the blocks that hold final KV, plus the one that is being written; or why the request stays."""
        leaving = self.leaving[request_id]
        reason: AbortReason | None = self._why_off(leaving)
        return reason or versions.final_tokens(leaving.request) // int(self.block_size) + 1

    def freeze(self: Any, request_id: str) -> None:
        """Take the request out of the queue or the batch that it is in; its blocks and its worker state stay."""
        leaving = self.leaving[request_id]
        if leaving.frozen or self._why_off(leaving) is not None:
            return
        request = leaving.request
        if request.status == _status.RUNNING:
            self.running = [other for other in self.running if other is not request]
            request.spec_token_ids = []
        else:
            for queue in versions.waiting_queues(self):
                queue.remove_requests({request})
            versions.forget_deferral(self, request)
        leaving.frozen = True

    def frozen_blocks(self: Any, request_id: str) -> int | AbortReason | None:
        """Return the blocks that the request needs elsewhere, its next token included; None while steps are in flight.

        0 for a request without KV, which waits: it only changes queues.
        """
        leaving = self.leaving[request_id]
        reason: AbortReason | None = self._why_off(leaving)
        if reason is not None:
            return reason
        request = leaving.request
        if request.num_in_flight_tokens > 0 or request.num_output_placeholders > 0:
            return None
        return int(request.num_computed_tokens) // int(self.block_size) + 1 if request.num_computed_tokens else 0

    def thaw(self: Any, request_id: str) -> bool:
        """Put the request back where it was; False if it has ended meanwhile."""
        leaving = self.leaving.pop(request_id, None)
        if leaving is None or self._has_ended(leaving):
            return False
        request = leaving.request
        if leaving.frozen:
            if request.num_computed_tokens == 0:
                self.waiting.prepend_request(request)
            elif request.status == _status.RUNNING and len(self.running) < self.max_num_running_reqs:
                self.running.append(request)
            else:
                self._queue_with_blocks(request)
        return True

    def release(self: Any, request_id: str) -> bool:
        """Forget the request and free its blocks, with no output; False if it was aborted while frozen."""
        leaving = self.leaving.pop(request_id, None)
        alive = leaving is not None and not self._has_ended(leaving)
        if alive:
            self.finish_requests(request_id, _status.FINISHED_ABORTED)
        return alive

    def _why_off(self: Any, leaving: Leaving) -> AbortReason | None:
        if self._has_ended(leaving):
            return AbortReason.finished
        if leaving.request.num_preemptions != leaving.preemptions:
            return AbortReason.preempted
        return None

    def _has_ended(self: Any, leaving: Leaving) -> bool:
        request = leaving.request
        return request.is_finished() or self.requests.get(request.request_id) is not request

    # --- destination

    def seats_free(self: Any) -> int:
        """Return how many more requests can run, with those on their way in counted."""
        return int(self.max_num_running_reqs) - len(self.running) - len(self.arriving)

    def reserve(self: Any, request: Any, blocks: int, keep_free_blocks: int) -> int | None:
        """Set `blocks` blocks aside; return how many of them prefix caching has filled already, None without room."""
        hit_blocks = 0
        if blocks > 0:
            manager = self.kv_cache_manager
            hits, hit_tokens = None, 0
            if manager.enable_caching:
                hits, hit_tokens = manager.get_computed_blocks(request)[:2]
            granted = manager.allocate_slots(
                request,
                max(blocks * self.block_size - hit_tokens, 1),
                num_new_computed_tokens=hit_tokens,
                new_computed_blocks=hits if hit_tokens else None,
                delay_cache_blocks=True,
                reserved_blocks=keep_free_blocks,
            )
            if granted is None:
                return None
            hit_blocks = hit_tokens // self.block_size
        self.arriving[request.request_id] = Arriving(request, blocks)
        if blocks > 0:
            versions.keep_from_zeroing(self, request.request_id)
        return hit_blocks

    def extend(self: Any, request_id: str, blocks: int) -> bool:
        """Set `blocks` more aside."""
        arriving = self.arriving[request_id]
        if blocks > 0:
            # An arriving request has computed nothing yet, so that "new" tokens are all its tokens.
            wanted_tokens = (arriving.blocks + blocks) * self.block_size
            granted = self.kv_cache_manager.allocate_slots(arriving.request, wanted_tokens, delay_cache_blocks=True)
            if granted is None:
                return False
            versions.keep_from_zeroing(self, request_id)
        arriving.blocks += blocks
        return True

    def block_ids(self: Any, request_id: str) -> list[int]:
        """Return the physical blocks of a request, in the order of its tokens."""
        return list(self.kv_cache_manager.get_block_ids(request_id)[0])

    def cancel(self: Any, request_id: str) -> None:
        """Free what was reserved."""
        arriving = self.arriving.pop(request_id, None)
        if arriving is not None:
            self.kv_cache_manager.free(arriving.request)

    def enter(self: Any, request: Any, computed_tokens: int) -> None:
        """Let a request in whose first `computed_tokens` tokens have their KV in place. None of it is computed again.

        With model runner V1 it joins the batch at once, as if it had always been there; its worker state must have
        been seeded. V2 gets whole requests only with their first step, so that it enters as a waiting one whose KV
        has been loaded. Without a seat it waits, before those that hold no blocks.
        """
        request.num_computed_tokens = computed_tokens
        if request.num_output_tokens or computed_tokens:
            request.prefill_stats = None  # the prompt was reported where it was computed
        self.requests[request.request_id] = request
        if computed_tokens:
            self.kv_cache_manager.cache_blocks(request, computed_tokens)
        if computed_tokens and not self.use_v2_model_runner and len(self.running) < self.max_num_running_reqs:
            request.status = _status.RUNNING
            self.running.append(request)
        elif computed_tokens:
            self._queue_with_blocks(request)
        else:
            # V1 takes a waiting request for a new one, without output tokens; one resumed keeps what was seeded.
            resumes = request.num_output_tokens > 0 and not self.use_v2_model_runner
            request.status = _status.PREEMPTED if resumes else _status.WAITING
            self.waiting.add_request(request)

    def _queue_with_blocks(self: Any, request: Any) -> None:
        request.status = _status.WAITING if self.use_v2_model_runner else _status.PREEMPTED
        versions.queue_of_block_holders(self).prepend_request(request)


class MigratingScheduler(Migrating, _Scheduler):  # type: ignore[misc]
    """The scheduler that waits for each step."""


class MigratingAsyncScheduler(Migrating, _AsyncScheduler):  # type: ignore[misc]
    """The scheduler that runs one step ahead."""
