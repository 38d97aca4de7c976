"""The check at start-up: which vLLM may migrate, and what it says of one that may not. Needs no vLLM."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from llumnix.engines.vllm import versions
from llumnix.engines.vllm.versions import Finding


@pytest.mark.parametrize("version", ["0.26.0", "0.29.1.post2", "0.32.0", "0.32.0+cpu"])
def test_versions_in_the_range_may_migrate(version: str) -> None:
    assert Finding(version, ()).unsupported is None


@pytest.mark.parametrize("version", ["0.25.9", "0.33.0", "1.0.0", "dev"])
def test_any_other_version_is_named_and_may_not(version: str) -> None:
    reason = Finding(version, ()).unsupported
    assert reason is not None
    assert reason.startswith(f"vLLM {version} is outside 0.26 to 0.32")


def test_a_hook_that_has_moved_is_named() -> None:
    reason = Finding("0.32.0", ("vllm.v1.request.Request: is_finished",)).unsupported
    assert reason == "vLLM 0.32.0 lacks what migration needs: vllm.v1.request.Request: is_finished"


def test_hooks_are_looked_for_where_they_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "import_module", lambda name: SimpleNamespace(__version__="0.30.0"))
    monkeypatch.setattr(
        versions,
        "HOOKS",
        {"json.JSONDecoder": ("decode", "gone"), "json.nothing.here": ("x",), "json.dump": ("indent", "nope")},
    )
    assert versions.check() == Finding("0.30.0", ("json.JSONDecoder: gone", "json.nothing.here: x", "json.dump: nope"))


def test_fields_of_live_objects_are_looked_for() -> None:
    scheduler = SimpleNamespace(**dict.fromkeys(versions.SCHEDULER_FIELDS))
    request = SimpleNamespace(**dict.fromkeys(versions.REQUEST_FIELDS))
    assert versions.missing_fields(scheduler, request) == []
    del scheduler.finished_req_ids, request.num_preemptions
    assert versions.missing_fields(scheduler, request) == ["Scheduler.finished_req_ids", "Request.num_preemptions"]


def test_each_version_has_its_queue_for_waiters_with_blocks() -> None:
    older = SimpleNamespace(waiting="waiting", skipped_waiting="skipped")
    newer = SimpleNamespace(waiting="waiting", kv_holding_waiting="holding", deferred_waiting={1, 2})
    assert versions.queue_of_block_holders(older) == "waiting"
    assert versions.queue_of_block_holders(newer) == "holding"
    assert versions.waiting_queues(older) == ["waiting", "skipped"]
    assert versions.waiting_queues(newer) == ["waiting", "holding"]
    versions.forget_deferral(older, 1)
    versions.forget_deferral(newer, 1)
    assert newer.deferred_waiting == {2}


@pytest.mark.parametrize(
    ("fields", "argument"), [({"watermark": 1, "model": 2}, {"watermark": 0.1}), ({"model": 2}, {})]
)
def test_a_vllm_without_a_watermark_is_asked_for_none(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, int], argument: dict[str, float]
) -> None:
    monkeypatch.setattr(versions, "lookup", lambda path: SimpleNamespace(__dataclass_fields__=fields))
    assert versions.watermark(0.1) == argument
