"""vLLM's worker with access to KV blocks and to what its sampler remembers. Loaded through `worker_extension_cls`.

Called with collective_rpc between steps, so it runs in every tensor-parallel rank on that rank's shard. All names start
with `llumnix_`: vLLM adds this class to the bases of its worker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from llumnix.engines.base import Parcel
from llumnix.engines.vllm import carriers, versions
from llumnix.engines.vllm.carriers import CARRIERS, CUDA_IPC
from llumnix.engines.vllm.peer_memory import Export, PeerMemory

torch: Any = versions.lookup("torch")
log = logging.getLogger(__name__)


class LlumnixWorker:
    """Mixin over a vLLM worker; `model_runner`, `rank` and `device` are the worker's own."""

    model_runner: Any
    rank: int
    _llumnix_peers: PeerMemory | None = None
    _llumnix_stream: Any = None
    _llumnix_written: Any = None  # the CUDA event of the last write through the host

    def llumnix_layout(self) -> tuple[str, tuple[tuple[int, ...], ...]]:
        """Return the KV dtype and, per layer, the shape of one block; ValueError if the layout is not understood."""
        caches = self.model_runner.kv_caches
        self._llumnix_split()
        return str(caches[0].dtype), tuple(tuple(cache.shape[1:]) for cache in caches)

    def llumnix_block_bytes(self) -> int:
        """Return the bytes of one block on this rank, all layers together."""
        return int(sum(cache.nbytes for cache in self.model_runner.kv_caches)) // int(
            self.model_runner.kv_cache_config.num_blocks
        )

    def llumnix_export(self) -> Export | None:
        """Return what other processes need to read this rank's KV tensors by themselves; None where they cannot."""
        caches = self.model_runner.kv_caches
        if caches[0].device.type != "cuda":
            return None
        try:
            self._llumnix_peers = PeerMemory(caches)
            return self._llumnix_peers.export()
        except Exception as error:  # CUDA, Triton or its compiler: without them the host is the way
            log.warning("KV blocks of rank %d go through the host, because %s", self.rank, error)
            self._llumnix_peers = None
            return None

    def llumnix_map(self, exports: Sequence[Export | None]) -> bool:
        """Make the KV tensors of a source readable here; False if that cannot be."""
        export = exports[self.rank]
        if self._llumnix_peers is None or export is None:
            return False
        try:
            self._llumnix_peers.map(export)
        except RuntimeError as error:
            log.warning("rank %d cannot read the memory of a source: %s", self.rank, error)
            return False
        return True

    def llumnix_read(self, block_ids: Sequence[int], carrier: str) -> Parcel:
        """Copy blocks out: one tensor (layers, blocks, ...), packed by `carrier`; with CUDA IPC only name them."""
        if self._llumnix_written is not None:  # what came a moment ago may be leaving already
            self._llumnix_written.synchronize()
        if carrier == CUDA_IPC:
            assert self._llumnix_peers is not None
            return Parcel(carrier, len(block_ids), self._llumnix_peers.there(self._llumnix_row_numbers(block_ids)))
        caches = self.model_runner.kv_caches
        with self._llumnix_beside():  # these blocks are final: no step under way writes to them
            rows = self._llumnix_rows(block_ids)
            gathered = torch.empty(
                (len(caches), len(rows), *caches[0].shape[1:]), dtype=caches[0].dtype, device=rows.device
            )
            for layer, cache in enumerate(caches):
                torch.index_select(cache, 0, rows, out=gathered[layer])
            return Parcel(carrier, len(block_ids), CARRIERS[carrier].pack(gathered))

    def llumnix_give_back(self, contents: Sequence[Any]) -> None:
        """Use the memory of parcels again that nobody will read any more; those of other ranks are ignored."""
        carriers.discard(contents)

    def llumnix_write(self, block_ids: Sequence[int], parcels: Sequence[Parcel], *, wait: bool) -> Any:
        """Copy this rank's parcel into blocks; unless it is to `wait`, return the CUDA event of a copy under way."""
        parcel = parcels[self.rank]
        block_ids = block_ids[: parcel.blocks]
        if parcel.carrier == CUDA_IPC:
            assert self._llumnix_peers is not None
            copied = self._llumnix_peers.copy(parcel.content, self._llumnix_row_numbers(block_ids))
            return copied.synchronize() if wait else copied
        with self._llumnix_beside():
            rows = self._llumnix_rows(block_ids)
            arrived = CARRIERS[parcel.carrier].unpack(parcel.content, rows.device)
        # On the stream of the steps: those already begun may still use these blocks for a request that has left them.
        for layer, cache in enumerate(self.model_runner.kv_caches):
            cache.index_copy_(0, rows, arrived[layer])
        if rows.device.type == "cuda":
            stream = torch.cuda.current_stream(rows.device)
            for tensor in (rows, arrived):
                tensor.record_stream(stream)
            self._llumnix_written = stream.record_event()
        return None

    def llumnix_settle(self) -> None:
        """Let steps from now on wait for copies under way: blocks are used, or go to somebody else."""
        if self._llumnix_peers is not None:
            self._llumnix_peers.settle()

    def llumnix_close(self) -> None:
        """Free the shared memory of this process: it would outlive one that is killed."""
        carriers.close()

    def llumnix_sampler_state(self, request_id: str) -> bytes | None:
        """Return the state of the request's random generator, which only model runner V1 has, for seeded requests."""
        if not versions.holds_request_state(self.model_runner):
            return None
        state = self.model_runner.requests.get(request_id)
        if state is None or state.generator is None:
            return None
        return bytes(state.generator.get_state().cpu().numpy().tobytes())

    def llumnix_seed(
        self,
        request: Any,
        generated: Sequence[int],
        computed_tokens: int,
        block_ids: Sequence[int],
        sampler_states: Sequence[bytes | None],
    ) -> None:
        """Make model runner V1 know a request that it has not seen from its first token on.

        Without a sampler state the generator is brought to where it must be after that many sampled tokens.
        """
        runner = self.model_runner
        if not versions.holds_request_state(runner):
            return
        params = request.sampling_params
        generator = None
        if params.sampling_type == versions.lookup("vllm.sampling_params.SamplingType").RANDOM_SEED:
            generator = torch.Generator(device=runner.device)
            generator.manual_seed(params.seed)
            state = sampler_states[self.rank] if sampler_states else None
            if state is not None:
                generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
            else:
                self._llumnix_draw(generator, len(generated))
        runner.requests[request.request_id] = versions.lookup("vllm.v1.worker.gpu_input_batch.CachedRequestState")(
            req_id=request.request_id,
            prompt_token_ids=list(request.prompt_token_ids),
            mm_features=[],
            sampling_params=params,
            generator=generator,
            block_ids=(list(block_ids),),
            num_computed_tokens=computed_tokens,
            output_token_ids=list(generated),
        )

    def _llumnix_draw(self, generator: Any, tokens: int) -> None:
        """Let vLLM's own sampler use the generator up to after `tokens` tokens, whatever it draws for each."""
        runner = self.model_runner
        for _ in range(tokens):
            logits = torch.zeros((1, runner.input_batch.vocab_size), dtype=torch.float32, device=runner.device)
            runner.sampler.topk_topp_sampler(logits, {0: generator}, None, None)

    def _llumnix_beside(self) -> AbstractContextManager[Any]:
        """Return a context in which work on the GPU does not queue behind the steps under way."""
        device = self.model_runner.kv_caches[0].device
        if device.type != "cuda":
            return nullcontext()
        if self._llumnix_stream is None:
            self._llumnix_stream = torch.cuda.Stream(device=device)
        return torch.cuda.stream(self._llumnix_stream)  # type: ignore[no-any-return]

    def _llumnix_rows(self, block_ids: Sequence[int]) -> Any:
        rows = self._llumnix_row_numbers(block_ids)
        return torch.tensor(rows, dtype=torch.long, device=self.model_runner.kv_caches[0].device)

    def _llumnix_row_numbers(self, block_ids: Sequence[int]) -> list[int]:
        """Return the rows of the KV tensors that the blocks are: several each if kernels use smaller blocks."""
        split = self._llumnix_split()
        return [block * split + part for block in block_ids for part in range(split)]

    def _llumnix_split(self) -> int:
        """Return the rows per block. Blocks are the first axis in every supported version; strides do not matter."""
        blocks = self.model_runner.kv_cache_config.num_blocks
        shapes = {tuple(cache.shape) for cache in self.model_runner.kv_caches}
        dtypes = {cache.dtype for cache in self.model_runner.kv_caches}
        rows = {shape[0] for shape in shapes}
        if len(shapes) != 1 or len(dtypes) != 1 or any(count % blocks for count in rows):
            raise ValueError(
                f"KV tensors of shapes {sorted(shapes)} for {blocks} blocks: not a layout that can migrate"
            )
        return int(rows.pop()) // int(blocks)
