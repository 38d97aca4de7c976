"""When --multirun is added, and how errors read."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from llumnix.errors import ConfigError
from runners.command_line import is_lost_worker, is_multirun, one_sentence, with_multirun
from runners.serve import CONF


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("experiment")
    (directory / "figure.yaml").write_text("# @package _global_\nname: f\nhydra: {sweeper: {params: {qps: '1,2'}}}\n")
    (directory / "single.yaml").write_text("# @package _global_\nname: s\n")
    (directory / "broken.yaml").write_text("{")
    return directory


@pytest.mark.parametrize(
    ("words", "sweeps"),
    [
        ("experiment=figure", True),
        ("+experiment=figure scheduler=llumnix", True),
        ("experiment=single experiment=figure", True),
        ("experiment=figure experiment=single", False),
        ("experiment=single", False),
        ("experiment=broken", False),
        ("experiment=unknown", False),
        ("qps=1", False),
        ("", False),
        ("experiment=figure --cfg job", False),
        ("experiment=figure --cfg=job", False),
        ("experiment=figure --help", False),
        ("experiment=figure --info defaults", False),
        ("experiment=figure --run", False),
    ],
)
def test_multirun_is_added_where_the_experiment_sweeps(experiments: Path, words: str, sweeps: bool) -> None:
    argv = with_multirun(words.split(), experiments)
    assert is_multirun(argv) is sweeps
    assert argv[sweeps:] == words.split()


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_multirun_comes_first_and_once(experiments: Path, flag: str) -> None:
    words = ["experiment=figure", flag, "qps=1,2"]
    assert with_multirun(words, experiments) == ["--multirun", "experiment=figure", "qps=1,2"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("qpss=3", ["qpss", "no such key", "qps?"]),
        ("xyz=3", ["xyz", "no such key", "--cfg job"]),
        ("qps=abc", ["qps=abc", "could not be converted to Float"]),
        ("num_requests=1.5", ["num_requests=1.5", "Integer"]),
        ("cluster.instances=many", ["cluster.instances=many", "Integer"]),
        ("scheduler=lumnix", ["scheduler=lumnix", "llumnix?", "infaas", "round_robin"]),
        ("scheduler.dispatch=x", ["scheduler.dispatch=x", "round_robin, freest"]),
        ("experiment=fig99", ["experiment=fig99", "fig11"]),
        ("engine=vlm", ["engine=vlm", "vllm?", "sim"]),
        ("hydra/launcher=submitit_local", ["pip install '.[slurm]'"]),
        ("hydra/launcher=slurm", ["pip install '.[slurm]'"]),
        ("hydra/launcher=ray_cluster", ["pip install '.[ray-launcher]'"]),
        ("foo", ["foo", "key=value"]),
    ],
)
def test_hydras_errors_become_one_sentence(override: str, words: list[str]) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception) as caught:  # noqa: PT011
        compose("serve", [override])
    sentence = one_sentence(caught.value)
    assert "\n" not in sentence
    assert [word for word in words if word not in sentence] == []
    assert "Traceback" not in sentence
    assert len(sentence) < 300


def test_other_errors() -> None:
    assert one_sentence(ConfigError("a\n  b.")) == "a b."
    assert one_sentence(OSError(errno.ENOSPC, "No space left on device", "x")) == "No space left on device: x"
    assert one_sentence(RuntimeError("boom")) == "RuntimeError: boom"
    assert one_sentence(MemoryError()) == "MemoryError"


def test_a_lost_worker_is_recognised() -> None:
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    assert is_lost_worker(TerminatedWorkerError())
    assert not is_lost_worker(RuntimeError())
