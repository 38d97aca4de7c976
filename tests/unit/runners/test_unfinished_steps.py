"""Steps written one point at a time, and read whatever moment it was that the writing stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llumnix.engines.vllm.meter import Content, Step
from llumnix.errors import ConfigError
from llumnix.profile import PROFILE
from runners.unfinished_steps import UNFINISHED, add, read

COUNT = st.integers(0, 2**40)
STEPS = st.lists(st.builds(Step, st.builds(Content, *[COUNT] * 6), st.floats(1e-6, 100)), min_size=1, max_size=6)


@given(parts=st.lists(STEPS, min_size=1, max_size=4), data=st.data())
def test_all_lines_that_were_written_whole_are_read(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[Step]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("profile") / UNFINISHED
    for part in parts:
        add(path, part)
    text = path.read_bytes()
    heading = text.index(b"\n") + 1
    end = data.draw(st.integers(text.index(b"\n", heading) + 1, len(text)))
    path.write_bytes(text[:end])
    whole = text[:end].count(b"\n") - 1
    expected = [(*step.content, step.step_s) for part in parts for step in part][:whole]
    table = read(path)
    assert table.column_names == PROFILE.names
    assert list(zip(*(column.to_pylist() for column in table.columns), strict=True)) == expected


def test_a_file_without_a_whole_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / UNFINISHED).write_text(",".join(PROFILE.names) + "\n1,2")
    with pytest.raises(ConfigError, match=f"{UNFINISHED} has no rows"):
        read(tmp_path / UNFINISHED)
