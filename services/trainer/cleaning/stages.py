"""The stages of a cleaning run. Each is one datatrove pipeline; a stage needs all tasks of the one before it.

identify   read, identify languages, sign documents, count lines
match      which documents are the same, which lines are boilerplate
judge      drop those, remove lines, apply the filters, sign again
match near which documents are nearly the same
write      drop those, redact, write what is clean
report     read all counts, write report.json and report.md
"""

import os
from dataclasses import dataclass
from typing import Any

import multiprocess
from datatrove.pipeline.base import PipelineStep

from services.trainer.cleaning import exact_duplicates, near_duplicates
from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.documents import CleanWriter, DocumentReader, WorkReader, work_writer
from services.trainer.cleaning.identify_step import IdentifyLanguage
from services.trainer.cleaning.lines import CountLines, FindBoilerplate, RemoveLines
from services.trainer.cleaning.quality_step import JudgeQuality
from services.trainer.cleaning.redact_step import RedactPersonalInformation
from services.trainer.cleaning.report import WriteReport
from services.trainer.cleaning.signatures import DropMatches
from services.trainer.cleaning.tally import CountKept

MAX_MATCHING_TASKS = 16  # each reads all signatures


@dataclass(frozen=True, slots=True)
class Stage:
    name: str
    tasks: int
    steps: list[PipelineStep]


def stages(config: CleaningConfig) -> list[Stage]:
    """In order. `config` must be resolved."""
    output, work = config.output, f"{config.output}/work"
    matching = min(config.tasks, MAX_MATCHING_TASKS)
    identify = [
        DocumentReader(config),
        IdentifyLanguage(output),
        exact_duplicates.WriteExactSignatures(f"{work}/exact"),
        CountLines(f"{work}/lines", config.min_line_characters),
        work_writer(f"{work}/identified"),
    ]
    judge = [
        WorkReader(f"{work}/identified"),
        DropMatches(output, f"{work}/exact_matches", exact_duplicates.REASON),
        RemoveLines(config, f"{work}/boilerplate"),
        JudgeQuality(config),
        *([near_duplicates.WriteSimHashes(f"{work}/simhash")] if config.near_duplicates else []),
        work_writer(f"{work}/judged"),
    ]
    write = [
        WorkReader(f"{work}/judged"),
        *([DropMatches(output, f"{work}/near_matches", near_duplicates.REASON)] if config.near_duplicates else []),
        RedactPersonalInformation(config),
        CountKept(),
        CleanWriter(output),
    ]
    match_near = [near_duplicates.MatchSimHashes(f"{work}/simhash", f"{work}/near_matches")]
    return [
        Stage("1-identify", config.tasks, identify),
        Stage("2-match", matching, [exact_duplicates.MatchExact(f"{work}/exact", f"{work}/exact_matches")]),
        Stage(
            "3-boilerplate",
            matching,
            [FindBoilerplate(f"{work}/lines", f"{work}/boilerplate", config.min_line_repeats)],
        ),
        Stage("4-judge", config.tasks, judge),
        *([Stage("5-match-near", matching, match_near)] if config.near_duplicates else []),
        Stage("6-write", config.tasks, write),
        Stage("7-report", 1, [WriteReport(config)]),
    ]


def executor(config: CleaningConfig, stage: Stage, after: Any) -> Any:
    """datatrove's executor of a stage that runs after the stage of `after`; importing it pulls what it needs."""
    options: dict[str, Any] = {
        "pipeline": stage.steps,
        "tasks": stage.tasks,
        "workers": min(config.workers, stage.tasks),
        "logging_dir": f"{config.output}/logs/{stage.name}",
        "depends": after,
        **config.executor_options,
    }
    if config.executor == "slurm":
        from datatrove.executor.slurm import SlurmPipelineExecutor

        return SlurmPipelineExecutor(job_name=f"clean-{stage.name}", **options)
    if config.executor == "ray":
        from datatrove.executor.ray import RayPipelineExecutor

        return RayPipelineExecutor(**options)
    from datatrove.executor.local import LocalPipelineExecutor

    return LocalPipelineExecutor(**options)


def run(config: CleaningConfig) -> None:
    """Run all stages (local, Ray) or submit them (Slurm); tasks that were completed before are not run again."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # in tasks: there is one for every processor as it is
    multiprocess.set_forkserver_preload([__name__])  # imported once, not in every task
    last: Any = None
    for stage in stages(config):
        last = executor(config, stage, last)
    last.run()
