"""What stays is left out of collections, for as long as is said."""

from __future__ import annotations

import gc

import pytest

from llumnix.cluster.real.collector import sparing_what_is_here


@pytest.fixture(autouse=True)
def nothing_is_spared() -> None:
    """vLLM spares what is here when an engine starts, which other tests in this process may have done."""
    gc.unfreeze()


def test_what_is_there_is_spared_inside_the_block_and_what_comes_is_collected() -> None:
    stays: list[object] = [[]]
    with sparing_what_is_here():
        assert not any(found is stays for found in gc.get_objects())
        comes: list[object] = [[]]
        assert any(found is comes for found in gc.get_objects())
    assert any(found is stays for found in gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_a_block_that_fails_spares_nothing_afterwards() -> None:
    with pytest.raises(ValueError, match="a run"), sparing_what_is_here():
        raise ValueError("a run")
    assert gc.get_freeze_count() == 0
