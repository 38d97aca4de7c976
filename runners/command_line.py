"""What is around Hydra's command line: --multirun where an experiment needs it, and errors as one sentence each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from llumnix.errors import LlumnixError

MULTIRUN = {"-m", "--multirun"}
NOT_A_SWEEP = {
    "-h",
    "--help",
    "--hydra-help",
    "-c",
    "--cfg",
    "-i",
    "--info",
    "-r",
    "--run",
    "-sc",
    "--shell-completion",
}
INSTALL = {
    "submitit": "pip install '.[slurm]'",
    "ray": "pip install '.[ray-launcher]'",
}
"""What brings a Hydra launcher, by the beginning of its name."""


def with_multirun(argv: Sequence[str], experiments: Path) -> list[str]:
    """Put --multirun first, adding it if the chosen experiment sweeps and nothing on the command line says otherwise.

    Hydra's parser takes no override after a flag if there was one before it.
    """
    if is_multirun(argv):
        return ["--multirun", *(word for word in argv if word not in MULTIRUN)]
    flags = {word.partition("=")[0] for word in argv if word.startswith("-")}
    chosen = [word.partition("=")[2] for word in argv if re.match(r"\+{0,2}experiment=", word)]
    if flags & NOT_A_SWEEP or not chosen or not _sweeps(experiments / f"{chosen[-1]}.yaml"):
        return list(argv)
    return ["--multirun", *argv]


def is_multirun(argv: Iterable[str]) -> bool:
    """Whether Hydra will be asked for several jobs."""
    return not MULTIRUN.isdisjoint(argv)


def one_sentence(error: BaseException) -> str:
    """What is wrong and what to type, on one line, without a traceback."""
    if isinstance(error, LlumnixError):
        return _joined(str(error))
    if isinstance(error, MissingConfigException):
        return _unknown_option(str(error))
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not understood as key=value ({_joined(error.message.splitlines()[0])})"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _composition(error)
    if unknown := re.search(r"object has no attribute '(\w+)'", str(error)):  # +key=value goes past Hydra's own check
        return _unknown_key(unknown[1])
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    return f"{type(error).__name__}: {_joined(str(error))}".removesuffix(": ")


def is_lost_worker(error: BaseException) -> bool:
    """True if a process of joblib's pool died. Told by the name of the class, since joblib may not be imported."""
    return any(cls.__name__ in ("BrokenProcessPool", "TerminatedWorkerError") for cls in type(error).__mro__)


def _sweeps(experiment: Path) -> bool:
    """True if the file has hydra.sweeper.params; a file that cannot be read is Hydra's to complain about."""
    try:
        content = yaml.safe_load(experiment.read_text(encoding="utf-8"))
        return bool(content["hydra"]["sweeper"]["params"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return False


def _unknown_option(text: str) -> str:
    """Hydra's "Could not find 'group/option'" with its list of options, which spans many lines."""
    found = re.search(r"Could not (?:find|load) '([^']+)'", text)
    if not found:
        return _joined(text)
    group, _, option = found[1].rpartition("/")
    if not group:
        return f"{option}: no such configuration file or group"
    if group == "hydra/launcher":
        for name, command in INSTALL.items():
            if option.startswith(name):
                return f"{group}={option} needs a package that is not installed: {command}"
    listing = text.partition("Available options in")[2].partition("Config search path")[0]
    options = re.findall(r"^\t(\S+)$", listing, flags=re.MULTILINE)
    close = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {close[0]}? - " if close else ""
    return f"{group}={option}: no such option; {hint}there are {', '.join(options) or 'none'}"


def _composition(error: BaseException) -> str:
    """Hydra's message and its cause's, without what only a developer of Hydra wants to know."""
    text = f"{error}\n{error.__cause__ or ''}"
    if unknown := re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' not in", text):
        return _unknown_key(unknown[1])
    if ambiguous := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{ambiguous[1]}: several values are a sweep, add -m (or quote them as one string)"
    if sweep := re.search(r"Sweep parameters '([^']+)' requires --multirun", text):
        return f"{sweep[1]}: several values are a sweep, add -m"
    merging = re.search(r"Error merging override (.+)", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [
        line for line in lines if not re.match(r"(full_key|object_type|reference_type|Error merging override)", line)
    ]
    key = re.search(r"full_key: (\S+)", text)
    where = merging[1] if merging else key[1] if key else ""
    return f"{where}: {_joined(' '.join(lines))}" if where else _joined(" ".join(lines))


def _unknown_key(key: str) -> str:
    from runners.config import ServeConfig

    known = [field.name for field in fields(ServeConfig)]
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "python -m runners.serve --cfg job lists the keys"
    return f"{key}: no such key; {hint}"


def _joined(text: str) -> str:
    return " ".join(text.split())
