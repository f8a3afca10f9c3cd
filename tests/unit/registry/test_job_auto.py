import pytest
import yaml

from bloom.config import PRESETS
from services.common.errors import InvalidArgument
from services.common.settings import ROOT
from services.registry.estimates import TrainingCluster
from services.registry.job_auto import AUTO, BLOOM, BLOOMZ, choose
from services.registry.job_events import read_events
from services.registry.job_specs import FineTuneSpec, LoraOptions, PretrainSpec, TrainOptions, spec_from_row

WHERE = TrainingCluster("jean-zay", 64)
MUCH = 10**12  # bytes of data


def spec(kind="pretrain", auto=AUTO, **options):
    options = TrainOptions(**({"steps": 10, "sequence_length": 2048} | options | {"auto": list(auto)}))
    if kind == "pretrain":
        return PretrainSpec(output_model="m", tokenizer_digest="", datasets=["d"], config="", options=options)
    return FineTuneSpec(output_model="m", base="b", datasets=["d"], options=options)


@pytest.mark.parametrize(("kind", "recipes", "table"), [("pretrain", "bloom", BLOOM), ("fine_tune", "bloomz", BLOOMZ)])
def test_what_is_chosen_is_what_the_recipes_of_the_published_runs_say(kind, recipes, table):
    compared = 0
    for name, published in table.items():
        path = ROOT / "recipes" / f"{recipes}-{name}.yaml"
        if not path.exists():  # BLOOMZ 1b1
            continue
        told = yaml.safe_load(path.read_text())[kind]["options"]
        dp = int(told["layout"].split("x")[2])
        batch = told["micro_batch"] * told["gradient_accumulation"] * dp
        expected = (float(told["learning_rate"]), float(told["min_learning_rate"]), batch)
        assert (published.learning_rate, published.min_learning_rate, published.batch) == expected, path
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_of_a_published_size_gets_its_own_values(name):
    chosen = choose(spec(auto=["learning_rate", "gradient_accumulation"], micro_batch=1), PRESETS[name], MUCH, WHERE)
    options = chosen.spec.options
    assert (options.learning_rate, options.gradient_accumulation) == (BLOOM[name].learning_rate, BLOOM[name].batch)
    assert options.auto == []
    assert chosen.said.endswith(f"nearest in size: bloom-{name}")


def test_a_batch_is_no_more_than_a_tenth_of_the_data_and_a_micro_batch_what_fits():
    small = choose(spec("fine_tune", sequence_length=512), PRESETS["560m"], 40 * 2048 * 4, WHERE).spec.options
    assert (small.micro_batch, small.gradient_accumulation) == (8, 2)
    large = choose(spec(), PRESETS["7b1"], MUCH, WHERE).spec.options
    assert large.micro_batch < 8
    assert large.micro_batch * large.gradient_accumulation == 512


def test_without_auto_nothing_is_changed():
    asked = spec(auto=[], learning_rate=0.5)
    assert choose(asked, PRESETS["560m"], MUCH, WHERE).spec is asked


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"auto": ["steps"]}, "auto names 'steps', which cannot be chosen; give it a value"),
        ({"auto": ["learning_rate"], "learning_rate": 0.1}, "learning_rate is auto and has the value 0.1; leave out"),
        (
            {"auto": ["min_learning_rate"], "learning_rate": 1e-9},
            "min_learning_rate=1e-05 is above learning_rate=1e-09",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(changes, why):
    with pytest.raises(InvalidArgument, match=why):
        choose(spec(**changes), PRESETS["560m"], MUCH, WHERE)


def test_for_adapters_there_is_no_published_rate():
    asked = spec("fine_tune", auto=["learning_rate"])
    with pytest.raises(InvalidArgument, match="BLOOMZ was tuned without adapters; give a value"):
        choose(FineTuneSpec(**{**vars_of(asked), "lora": LoraOptions(rank=8)}), PRESETS["560m"], MUCH, WHERE)


def vars_of(asked):
    return {name: getattr(asked, name) for name in ("output_model", "base", "datasets", "options")}


async def test_a_job_shows_what_was_chosen_and_says_so_in_its_events(registry):
    options = TrainOptions(steps=10, auto=["learning_rate", "micro_batch"])
    job = await registry.submit(spec=await registry.pretrain_spec(options=options))
    kept = spec_from_row(job.spec).options
    assert (kept.learning_rate, kept.micro_batch, kept.auto) == (3e-4, 8, [])
    async with registry.database.read() as session:
        said = [event.body for event in await read_events(session, job.id, 0) if event.kind == "message"]
    assert said == [{"message": "auto: learning_rate=0.0003, micro_batch=8; nearest in size: bloom-560m"}]
