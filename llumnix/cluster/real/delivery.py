"""Exactly-once delivery of one request's tokens, whatever moves or dies. Pure: no clock, no thread, no engine.

Every chunk says which attempt it belongs to and the output index of its first token. What the client already has is
cut off, what comes early waits, and what an earlier attempt still sends is dropped: a replay gives the request a new
attempt, so that an instance that was only believed dead cannot mix its tokens into the new stream.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llumnix.cluster.real.messages import Chunk


@dataclass(slots=True)
class Delivery:
    """What the client has of one request, and what cannot be given to it yet."""

    attempt: int = 0
    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    _early: dict[int, Chunk] = field(default_factory=dict)

    def accept(self, chunk: Chunk) -> list[Chunk]:
        """Take a chunk; return the chunks that the client gets now: in order, no token lost and none twice."""
        if chunk.attempt != self.attempt or self.finish_reason is not None:
            return []
        self._early[chunk.first_index] = self._better(chunk)
        given = []
        while self.finish_reason is None and (ready := self._take_ready()) is not None:
            known = len(self.tokens) - ready.first_index
            if known:  # extras are per chunk: a chunk of several tokens of which some are known loses them
                ready = ready._replace(first_index=len(self.tokens), tokens=ready.tokens[known:], extra=None)
            self.tokens.extend(ready.tokens)
            self.finish_reason = ready.finish_reason
            given.append(ready)
        return given

    def replay(self, attempt: int) -> None:
        """Begin another attempt, of a number that is higher than all before, from what has been delivered."""
        self.attempt = attempt
        self._early.clear()

    def _better(self, chunk: Chunk) -> Chunk:
        """Of two chunks that begin alike the one that says more."""
        known = self._early.get(chunk.first_index)
        if known is None or (len(chunk.tokens), chunk.finish_reason is not None) >= (
            len(known.tokens),
            known.finish_reason is not None,
        ):
            return chunk
        return known

    def _take_ready(self) -> Chunk | None:
        """Take out the next chunk that goes on where the delivered tokens end."""
        have = len(self.tokens)
        for index in sorted(self._early):
            if index > have:
                return None
            chunk = self._early.pop(index)
            if index + len(chunk.tokens) > have or (chunk.finish_reason and index + len(chunk.tokens) == have):
                return chunk
        return None
