"""How programs of this package end."""

from __future__ import annotations

import pytest

from analysis import words


def test_ctrl_c_ends_a_program_with_a_word_and_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, words.interruptible():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_any_other_end_is_left_alone() -> None:
    with pytest.raises(SystemExit) as ended, words.interruptible():
        raise SystemExit(2)
    assert ended.value.code == 2
