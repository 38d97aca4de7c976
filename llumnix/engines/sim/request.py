"""A request inside the simulator: what is asked, what has been done, and what the records will say about it."""

from __future__ import annotations

from llumnix.request import Priority


class SimRequest:
    """State of one request; times in ps of virtual time.

    While it decodes on an instance nothing here changes from step to step: `kv_base` and `generated_base` are
    relative to the instance's step counter, so that KV tokens = kv_base + counter. `arrival_order` is its rank by
    arrival, which is also its request_id.
    """

    __slots__ = (
        "arrival_order",
        "arrival_ps",
        "computed_tokens",
        "downtime_ps",
        "end_ps",
        "error",
        "exec_mark_ps",
        "exec_ps",
        "finish_step",
        "first_token_ps",
        "frozen_ps",
        "gap_ps",
        "generated",
        "instance_first",
        "instance_last",
        "join_step",
        "kv_base",
        "last_token_ps",
        "max_gap_ps",
        "migrations",
        "moved",
        "moving",
        "output_tokens",
        "preempted_ps",
        "preemption_loss_ps",
        "preemptions",
        "priority",
        "prompt_tokens",
        "status",
        "tokens",
        "turn",
    )

    def __init__(
        self, arrival_order: int, arrival_ps: int, prompt_tokens: int, output_tokens: int, priority: Priority
    ) -> None:
        self.arrival_order = arrival_order
        self.arrival_ps = arrival_ps
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.priority = priority
        self.generated = 0  # output tokens delivered; while decoding, as of the join
        self.tokens = prompt_tokens  # tokens a prefill has to process: prompt + generated
        self.computed_tokens = 0  # of them, by the end of the step under way; for prefills in chunks
        self.turn = arrival_order  # place among the running requests of its instance
        self.kv_base = 0
        self.finish_step = 0
        self.join_step = 0
        self.exec_mark_ps = 0
        self.exec_ps = 0
        self.first_token_ps: int | None = None
        self.last_token_ps = 0
        self.end_ps: int | None = None
        self.max_gap_ps = 0
        self.preempted_ps: int | None = None
        self.preemptions = 0
        self.preemption_loss_ps = 0
        self.migrations = 0
        self.downtime_ps = 0
        self.gap_ps = 0  # from the last token before a migration to the next, summed
        self.moved = False  # and has had no token since
        self.frozen_ps: int | None = None  # since when it has had no step, if its KV cache is to be computed again
        self.moving = False
        self.instance_first: int | None = None
        self.instance_last: int | None = None
        self.status = "waiting"
        self.error: str | None = None

    @property
    def context_tokens(self) -> int:
        """Tokens as of the request's last join of a batch; running requests of one instance age alike."""
        return self.kv_base
