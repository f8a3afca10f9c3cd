from dataclasses import replace

import pytest

from services.common.errors import InvalidArgument, NotFound
from services.registry.job_specs import CheckpointSource, LoraOptions, TrainOptions, spec_from_row


async def test_a_job_may_begin_with_the_checkpoint_of_another_and_remembers_of_which(registry):
    spec = await registry.pretrain_spec()
    first = await registry.submit(spec=spec)
    job = await registry.submit(spec=replace(spec, from_checkpoint=CheckpointSource(job_id=first.id, step=5)))
    assert spec_from_row(job.spec).from_checkpoint == CheckpointSource(job_id=first.id, step=5)
    acquired = await registry.leases.acquire(job.id, "w1")
    assert spec_from_row(acquired.job.spec).from_checkpoint.job_id == first.id


async def test_a_fine_tune_goes_on_with_one_of_the_same_base_however_it_is_named(registry):
    spec = await registry.fine_tune_spec(lora=LoraOptions(rank=4))
    first = await registry.submit(spec=spec)
    source = CheckpointSource(job_id=first.id)
    await registry.submit(spec=replace(spec, base="seedling@1", from_checkpoint=source))
    await registry.add_version()  # seedling@2
    with pytest.raises(InvalidArgument, match="from_checkpoint: base is 'seedling@2' here and 'seedling@1' in"):
        await registry.submit(spec=replace(spec, from_checkpoint=source))
    with pytest.raises(InvalidArgument, match=r"from_checkpoint: lora is 'None' here and .LoraOptions"):
        await registry.submit(spec=replace(spec, base="seedling@1", lora=None, from_checkpoint=source))


async def test_what_does_not_fit_is_refused_and_makes_no_job(registry):
    spec = await registry.pretrain_spec()
    first = await registry.submit(spec=spec)
    tune = await registry.fine_tune_spec()
    source = CheckpointSource(job_id=first.id)
    other_config = spec.config.replace('"n_layer": 2', '"n_layer": 1')
    for wrong, why in (
        (replace(tune, from_checkpoint=source), "the kind of job is 'fine_tune' here and 'pretrain' in"),
        (replace(spec, from_checkpoint=source, config=other_config), "from_checkpoint: config is"),
        (
            replace(spec, from_checkpoint=source, options=TrainOptions(steps=10, optimizer="muon")),
            "optimizer is 'muon' here and 'adamw' in",
        ),
        (
            replace(spec, from_checkpoint=replace(source, step=10)),
            "steps=10 count from the run's start, of which 10 are done; say more",
        ),
    ):
        with pytest.raises(InvalidArgument, match=why):
            await registry.submit(spec=wrong)
    with pytest.raises(NotFound, match="no job 'job-0'"):
        await registry.submit(spec=replace(spec, from_checkpoint=CheckpointSource(job_id="job-0")))
