"""A job that begins with a checkpoint of another one: can it?

The registry knows the other job; which of its checkpoints are there, only the worker that has its folder (the trainer's
brought.py). A checkpoint is of the parameters that are trained and of the optimizer's state, so these must be the same.
"""

from collections.abc import Iterator

from sqlalchemy.ext.asyncio import AsyncSession

from services.common.errors import InvalidArgument
from services.registry.job_events import read_job
from services.registry.job_specs import JobSpec, PretrainSpec, spec_from_row


async def check_source(session: AsyncSession, spec: JobSpec) -> None:
    """Raise NotFound where there is no such job, InvalidArgument where its checkpoints do not fit this one."""
    source = spec.from_checkpoint
    if source is None:
        return
    job = await read_job(session, source.job_id)
    other = spec_from_row(job.spec)
    if not isinstance(other, JobSpec):
        raise InvalidArgument(f"from_checkpoint: job {job.id} trains nothing, so it has no checkpoints; name another")
    for what, mine, theirs in _parts(spec, other):
        if mine != theirs:
            raise InvalidArgument(
                f"from_checkpoint: {what} is {mine[:80]!r} here and {theirs[:80]!r} in {job.id}; choose the same, or "
                "leave from_checkpoint out"
            )
    steps = spec.options.steps
    if steps is not None and steps <= source.step:
        raise InvalidArgument(f"steps={steps} count from the run's start, of which {source.step} are done; say more")


def _parts(spec: JobSpec, other: JobSpec) -> Iterator[tuple[str, str, str]]:
    """(what must be the same, in the one, in the other)"""
    if isinstance(spec, PretrainSpec):
        if not isinstance(other, PretrainSpec):
            yield "the kind of job", "pretrain", "fine_tune"
            return
        yield "config", spec.config, other.config
        yield "tokenizer_digest", spec.tokenizer_digest, other.tokenizer_digest
    else:
        if isinstance(other, PretrainSpec):
            yield "the kind of job", "fine_tune", "pretrain"
            return
        yield "base", spec.base, other.base
        yield "lora", str(spec.lora), str(other.lora)
    yield "optimizer", spec.options.optimizer or "adamw", other.options.optimizer or "adamw"
