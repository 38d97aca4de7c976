"""A run directory is done, failed or nothing, whatever interrupts the writing; one process at a time is at it."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from runners.rundir import OnDisk, RunDirectory, remove_leftovers


def publish(directory: RunDirectory, /, **files: str) -> None:
    with directory.publishing() as part:
        for name, text in files.items():
            (part / f"{name}.json").write_text(text)


def contents(root: Path) -> dict[str, str]:
    return {str(file.relative_to(root / "runs")): file.read_text() for file in (root / "runs").rglob("*.json")}


def test_states(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "a")
    assert run.state() is OnDisk.NOTHING
    assert list(tmp_path.iterdir()) == [], "looking creates nothing"
    run.path.mkdir(parents=True)
    assert run.state() is OnDisk.NOTHING
    (run.path / "failure.json").write_text("{}")
    assert run.state() is OnDisk.FAILED
    publish(run, run="{}", summary="{}")
    assert run.state() is OnDisk.DONE
    assert contents(tmp_path) == {"a/run.json": "{}", "a/summary.json": "{}"}, "success removes failure.json"


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_interrupted_writing_changes_nothing(tmp_path: Path, fault: BaseException) -> None:
    run = RunDirectory(tmp_path, "a")
    publish(run, run="old", summary="old")
    with pytest.raises(type(fault)), run.publishing() as part:  # noqa: PT012
        (part / "run.json").write_text("half")
        raise fault
    assert contents(tmp_path) == {"a/run.json": "old", "a/summary.json": "old"}
    assert [file.name for file in (tmp_path / "runs").iterdir()] == ["a"]


def test_the_summary_comes_last_so_that_a_run_is_never_done_too_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path, "a")
    publish(run, run="old", summary="old")
    moved: list[str] = []
    real = Path.replace

    def one_file_then_dead(self: Path, target: Path) -> Path:
        assert run.state() is OnDisk.NOTHING, "old summary beside new results"
        moved.append(target.name)
        if len(moved) == 2:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", one_file_then_dead)
    with pytest.raises(KeyboardInterrupt):
        publish(run, summary="new", run="new", zzz="new")
    assert "summary.json" not in moved
    assert run.state() is OnDisk.NOTHING


def test_a_second_process_waits_and_says_so(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path, "a"), RunDirectory(tmp_path, "a")
    said, entered = threading.Event(), threading.Event()

    def other() -> None:
        with second.locked(on_wait=said.set):
            entered.set()

    with first.locked(on_wait=pytest.fail):
        thread = threading.Thread(target=other)
        thread.start()
        assert said.wait(5)
        assert not entered.is_set()
    thread.join(5)
    assert entered.is_set()


def test_other_runs_are_not_locked(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "a").locked(on_wait=pytest.fail), RunDirectory(tmp_path, "b").locked(pytest.fail):
        pass


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    for name in ("dead", "living"):
        (tmp_path / "runs" / f".{name}.part").mkdir(parents=True)
        (tmp_path / "runs" / f".{name}.part" / "requests.parquet").write_text("half")
    with RunDirectory(tmp_path, "living").locked(on_wait=pytest.fail):
        remove_leftovers(tmp_path)
    assert [file.name for file in (tmp_path / "runs").iterdir()] == [".living.part"]


def test_broken_run_json_is_no_reason_to_fail(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, "a")
    assert run.run_json() == {}
    publish(run, run="[1", summary="{}")
    assert run.run_json() == {}
