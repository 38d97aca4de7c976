"""One job against its run directory: what is skipped, run, redone, recorded as failed, and never half written."""

from __future__ import annotations

import copy
import errno
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from llumnix import record
from llumnix.errors import TraceError
from runners import job
from runners.outcome import Outcome, State
from runners.serve import CONF

GIT = {"commit": "c0ffee", "dirty": False}
Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a small job with some overrides, as Hydra would."""

    def composed(*overrides: str, git: dict[str, Any] | None = GIT) -> Outcome:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            whole = compose("serve", ["num_requests=20", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(whole)
        task = copy.deepcopy(whole)
        OmegaConf.set_struct(task, False)
        del task["hydra"]
        return job.run(task, root=tmp_path, git=git)

    yield composed
    HydraConfig.instance().cfg = None


def breaking(fault: BaseException) -> Callable[..., Any]:
    def perform(*_: Any) -> Any:
        raise fault

    return perform


def files(root: Path) -> list[str]:
    return sorted(file.name for file in (root / "runs").rglob("*") if file.is_file())


RESULTS = ["events.parquet", "instances.parquet", "requests.parquet", "run.json", "summary.json"]


def test_a_run_leaves_records_that_say_where_they_come_from(run: Run, tmp_path: Path) -> None:
    outcome = run("qps=3")
    assert outcome.state is State.DONE
    assert outcome.settings["qps"] == "3.0"
    assert files(tmp_path) == RESULTS
    directory = Path(outcome.directory)
    about = json.loads((directory / "run.json").read_text())
    assert about["run_id"] == directory.name
    assert about["git"] == GIT
    assert about["config"]["qps"] == 3.0
    assert about["config"]["scheduler"]["name"] == "llumnix"
    assert about["choices"]["trace"] == "m_m"
    assert about["workload"]["requests"] == 20
    assert {"started_at", "wall_s", "host", "versions", "overrides", "schema_version"} <= set(about)
    stored = record.read_metadata(directory / "requests.parquet")
    assert stored["config"] == about["config"]
    assert stored["trace_sha256"] == about["workload"]["sha256"]
    assert json.loads((directory / "summary.json").read_text())["finished"] == 20


def test_what_is_done_is_skipped_unless_forced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()
    with monkeypatch.context() as patched:
        patched.setattr(job, "perform", breaking(AssertionError("must not run")))
        assert run().state is State.SKIPPED
    summary = Path(first.directory) / "summary.json"
    summary.write_text("{}")
    assert run("force=true").state is State.DONE
    assert summary.read_text() != "{}"


def test_results_of_another_commit_are_told(run: Run) -> None:
    run()
    assert not run().other_code
    assert run(git={"commit": "feed", "dirty": False}).other_code
    assert not run(git=None).other_code


def test_a_failure_leaves_its_reason_and_is_tried_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(job, "perform", breaking(RuntimeError("boom")))
        outcome = run()
    assert outcome.state is State.FAILED
    assert outcome.message == "RuntimeError: boom"
    assert files(tmp_path) == ["failure.json", "run.json"]
    failure = json.loads((Path(outcome.directory) / "failure.json").read_text())
    assert failure["error"] == "RuntimeError: boom"
    assert "Traceback" in failure["traceback"]
    assert failure["config"]["num_requests"] == 20
    assert failure["started_at"]
    assert run("dry_run=true").state is State.RETRY
    assert run().state is State.DONE
    assert files(tmp_path) == RESULTS


def test_a_failed_second_attempt_keeps_the_first_result(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path(run().directory)
    before = {name: (directory / name).read_bytes() for name in RESULTS}
    monkeypatch.setattr(job, "perform", breaking(RuntimeError("boom")))
    assert run("force=true").state is State.FAILED
    assert {name: (directory / name).read_bytes() for name in RESULTS} == before
    assert run().state is State.SKIPPED


@pytest.mark.parametrize("file", ["events.parquet", "summary.json", "run.json"])
def test_a_full_disk_is_one_sentence_and_no_partial_file(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    def full(writer: Callable[..., None]) -> Callable[..., None]:
        def write(path: Path, *arguments: Any) -> None:
            if path.name in (file, "failure.json"):
                path.write_bytes(b"ha")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            writer(path, *arguments)

        return write

    monkeypatch.setattr(record, "write_table", full(record.write_table))
    monkeypatch.setattr(record, "write_json", full(record.write_json))
    outcome = run()
    assert outcome.state is State.FAILED
    assert outcome.message.startswith("cannot write results (No space left on device")
    assert set(files(tmp_path)) <= {"run.json", "failure.json"}
    monkeypatch.undo()
    assert run().state is State.DONE
    assert files(tmp_path) == RESULTS


def test_an_interrupt_passes_through_and_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "write_json", breaking(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run()
    assert list((tmp_path / "runs").iterdir()) == []


def test_an_unwritable_directory_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the directory should be")
    outcome = run()
    assert outcome.state is State.FAILED
    assert "cannot write results" in outcome.message
    assert "\n" not in outcome.message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("qps=-1", "qps must be"),
        ("qps=nan", "qps must be"),
        ("qps=0", "qps must be"),
        ("cluster.instances=0", "cluster.instances"),
        ("name=../up", "name must be"),
        ("+unknown=1", "unknown: no such key"),
        ("trace=file", "trace.path"),
        ("arrivals=recorded", "arrivals=recorded"),
        ("qps=${trace.paper_qps.9}", "paper_qps.9"),
    ],
)
def test_wrong_input_runs_nothing_and_leaves_nothing(run: Run, tmp_path: Path, override: str, words: str) -> None:
    outcome = run(override)
    assert outcome.state is State.INVALID
    assert words in outcome.message
    assert "\n" not in outcome.message
    assert not (tmp_path / "runs").exists()


def test_a_trace_that_cannot_be_read_is_a_failure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "perform", breaking(TraceError("no usable row in x.csv.")))
    outcome = run()
    assert outcome.state is State.FAILED
    assert outcome.message == "no usable row in x.csv."


def test_excluded_and_dry_runs_create_nothing(run: Run, tmp_path: Path) -> None:
    assert run("exclude=[{scheduler: llumnix, trace: m_m}]").state is State.EXCLUDED
    assert run("exclude=[{scheduler: llumnix, trace: s_s}]", "dry_run=true").state is State.PLANNED
    assert list(tmp_path.iterdir()) == []
    done = run()
    assert run("dry_run=true").state is State.SKIPPED
    assert run("dry_run=true", "force=true").state is State.PLANNED
    assert run("dry_run=true").directory == done.directory
