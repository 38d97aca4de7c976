from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from runners import capacity, interrupt, profile, profile_engine


@pytest.fixture(autouse=True)
def _as_python_starts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _break_off(first: type[BaseException], *, hide: bool) -> None:
    """Fail as code does that is broken off by `first`, and fails again in cleaning up."""
    try:
        try:
            raise first
        finally:
            raise AttributeError("not whole")
    except AttributeError as error:
        if hide:
            raise ValueError("says nothing of it") from None
        raise OSError("the second one") from error


@pytest.mark.parametrize("hide", [True, False])
def test_an_error_that_an_interrupt_led_to_is_an_interrupt(hide: bool) -> None:
    with pytest.raises(KeyboardInterrupt), interrupt.not_replaced():
        _break_off(KeyboardInterrupt, hide=hide)


def test_any_other_error_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="nothing of it"), interrupt.not_replaced():
        _break_off(RuntimeError, hide=True)


def test_commands_end_as_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(profile_engine, "run", lambda *_: _break_off(KeyboardInterrupt, hide=True))
    assert profile.main(["engine=vllm"]) == 130
    monkeypatch.setattr(capacity, "_answer", lambda *_: _break_off(KeyboardInterrupt, hide=True))
    assert capacity.main(["slo.ttft_p99_s=5"]) == 130
    assert capsys.readouterr().err.count("Interrupted") == 2


def _press() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupt_is_raised_when_it_is_asked_for_and_once() -> None:
    with interrupt.held_back() as raise_noted:
        raise_noted()
        _press()
        with pytest.raises(KeyboardInterrupt):
            raise_noted()
        raise_noted()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _hold_back(presses: int, said: list[str], error: Exception | None = None) -> None:
    with interrupt.held_back():
        for _ in range(presses):
            _press()
        said.append("end")
        if error:
            raise error


def test_an_interrupt_that_nobody_asked_for_is_raised_at_the_end() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        _hold_back(1, said)
    assert said == ["end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_interrupt_is_raised_at_once() -> None:
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        _hold_back(2, said)
    assert not said


def test_an_error_is_not_replaced_by_an_interrupt() -> None:
    with pytest.raises(OSError, match="full"):
        _hold_back(1, [], OSError("the disk is full"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ignored_interrupts_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupt.held_back() as raise_noted:
        _press()
        raise_noted()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
