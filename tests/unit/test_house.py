"""Rules of the house that no single module can keep: what is committed, what documents promise, what imports cost."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "ARTIFACT.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXPERIMENTS = sorted(CONF.glob("experiment/*.yaml"))

# Somebody's directory, or a package index by name: neither exists on the next machine.
ABSOLUTE_PATH = re.compile(r"(?<![\w.)}/-])/(?:home|root|Users|work|mnt|opt|tmp)/[\w.]")
REGISTRY_HOST = re.compile(r"pythonhosted\.org|pypi\.org|pytorch\.org/whl|registry\.npmjs|conda\.anaconda")

# What a small run must not wait for.
HEAVY = {"ray", "pandas", "matplotlib", "seaborn", "scipy", "torch", "vllm", "pytest"}


def committed_text() -> dict[str, str]:
    """Every text file that git has or would take, by its path in the repository."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip(f"no git checkout: {listing.stderr.strip()}")
    texts = {}
    for name in filter(None, listing.stdout.split("\0")):
        try:
            texts[name] = (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture, or deleted and not yet committed
    return texts


@pytest.mark.parametrize("forbidden", [ABSOLUTE_PATH, REGISTRY_HOST], ids=["absolute path", "registry host"])
def test_no_committed_file_names_one_machine(forbidden: re.Pattern[str]) -> None:
    texts = committed_text()
    assert "pyproject.toml" in texts
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if forbidden.search(line)
    ]
    assert found == []


def test_the_patterns_find_what_they_are_for() -> None:
    slash = "/"
    assert ABSOLUTE_PATH.search(f"path: {slash}home/ann/trace.csv")
    assert ABSOLUTE_PATH.search(f'open("{slash}mnt/data/x")')
    assert not ABSOLUTE_PATH.search("outputs/data/x, ../shared/work/y, https://example.org/home/x")
    assert REGISTRY_HOST.search("https://files.python" + "hosted.org/packages")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_opens_with_the_command_that_runs_it(path: Path) -> None:
    package, first = path.read_text(encoding="utf-8").splitlines()[:2]
    assert package == "# @package _global_"  # Hydra looks for it in the first line only
    assert re.match(rf"# python -m runners\.serve experiment={re.escape(path.stem)}(\s|$)", first)


def options() -> list[str]:
    """Every `group=option` of our own groups; those of hydra/ need plugins that may not be installed."""
    files = [path.relative_to(CONF) for path in sorted(CONF.glob("*/*.yaml"))]
    return [f"{path.parent.as_posix()}={path.stem}" for path in files]


@pytest.mark.parametrize("option", options())
def test_every_option_composes(option: str) -> None:
    importlib.import_module("runners.serve")  # stores the schemas
    overrides = [option, "trace.path=a.csv"] if option in ("trace=file", "trace=superposed") else [option]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("serve", overrides)
        OmegaConf.to_object(config)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_name_only_what_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    commands = re.findall(r"(?:^    |`)make ([a-z]+)", text, flags=re.MULTILINE)
    assert [name for name in commands if name not in targets] == []
    paths = re.findall(r"\b((?:benchmarks|runners|analysis|llumnix|conf|docs|tests)/[\w./]*\w\.\w+)", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    assert [name for name in paths if "NN" not in name and not (ROOT / name).is_file()] == []
    assert [link for link in links if not (document.parent / link).exists()] == []


def promised_commands() -> list[str]:
    """Modules that the documents tell people to run."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS if path.exists())
    modules = {f"-m {name}" for name in re.findall(r"python -m ((?:runners|analysis|benchmarks)\.\w+)", text)}
    return sorted(modules)


@pytest.mark.parametrize("command", promised_commands())
def test_promised_commands_start(command: str) -> None:
    done = subprocess.run(
        [sys.executable, *command.split(), "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^ +make (\w+) +\S", shown, flags=re.MULTILINE) == phony.group(1).split()


def test_the_changelog_opens_with_the_version_of_the_package() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    entries = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert version in entries[:2]  # the first may be Unreleased


def test_starting_the_command_line_imports_nothing_heavy() -> None:
    probe = "import sys, runners.serve; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "llumnix" in done.stdout.split()
    assert HEAVY & set(done.stdout.split()) == set()


@pytest.mark.xdist_group("house")
def test_tests_that_share_a_cluster_share_a_process(request: pytest.FixtureRequest) -> None:
    """A pytest that xdist does not know drops the groups in silence: every cluster is then there twice at a time."""
    if not getattr(request.config.option, "loadgroup", False):
        pytest.skip("there are groups with -n 2 --dist loadgroup alone")
    assert request.node.nodeid.endswith("@house")
