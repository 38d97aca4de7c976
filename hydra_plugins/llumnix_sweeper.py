"""Hydra's basic sweeper for figures: leaves out what is in `exclude`, checks options not combinations, keeps a log.

The expansion of sweeps is Hydra's own. Composing a configuration takes Hydra a tenth of a second, and the basic sweeper
composes every job once more before it launches any; here as many are composed as it takes to see every value that was
typed. What an experiment file sweeps over is left to the jobs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from omegaconf import OmegaConf


class FigureSweeper(BasicSweeper):
    """`hydra.sweeper.params` and `hydra.sweeper.max_batch_size` are those of the basic sweeper."""

    def get_job_batch(self) -> Sequence[Sequence[str]]:
        """The next jobs."""
        if self.batch_index == 0:
            self._begin()
        batch: Sequence[Sequence[str]] = super().get_job_batch()
        return batch

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose jobs in which every typed override occurs, so that a wrong one is found before anything runs."""
        from runners import sweep

        assert self.config is not None
        overrides: Any = OmegaConf.to_container(self.config.hydra.overrides.task, resolve=False)
        typed = {override.partition("=")[0] for override in overrides}
        super().validate_batch_is_legal(sweep.covering(batch, typed))

    def _parse_config(self) -> list[str]:
        """hydra.sweeper.params as written: a value like ${trace.paper_qps.0} is for each job to resolve, not for us."""
        assert self.config is not None
        sweeper: Any = OmegaConf.to_container(self.config.hydra.sweeper, resolve=False)
        return [f"{key}={value}" for key, value in (sweeper["params"] or {}).items()]

    def _begin(self) -> None:
        """Drop the excluded jobs, write the plan of the others, and tell each of them where to report."""
        from runners import provenance, sweep

        assert self.config is not None
        assert self.overrides is not None
        defaults: Any = OmegaConf.to_container(self.config.hydra.runtime.choices)
        exclude: Any = OmegaConf.to_container(self.config.exclude)
        batches = [
            [job for job in batch if not sweep.is_excluded(sweep.chosen(job, defaults), exclude)]
            for batch in self.overrides
        ]
        jobs = [job for batch in batches for job in batch]
        excluded = sum(len(batch) for batch in self.overrides) - len(jobs)
        log = sweep.SweepLog.begin(Path(self.config.hydra.sweep.dir), jobs, excluded, provenance.git())
        os.environ[sweep.ENV] = str(log.path)
        report = f"+hydra.job.env_set.{sweep.ENV}='{log.path}'"
        self.overrides = [[[*job, report] for job in batch] for batch in batches]
