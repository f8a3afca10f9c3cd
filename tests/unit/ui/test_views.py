"""Every page, run by Streamlit's own tester over a real registry."""

import json

import grpc
import pytest
from anthesis import FineTuneSpec, TrainOptions
from anthesis.v1 import job_pb2, registry_pb2
from anthesis.v1.evaluation_pb2 import (
    EVALUATION_SOURCE_PUBLISHED,
    EVALUATION_SOURCE_REPORTED,
    Evaluation,
    EvaluationResult,
    LmEvalTask,
)
from anthesis.v1.registry_pb2 import DATASET_FORMAT_TEXT

from tests.support.registry_data import text_rows
from tests.unit.ui.conftest import html, words
from ui.evaluations import table

RAIL = "bigscience-rail-1.0"


@pytest.fixture
def served(stage):
    """`seedling` is deployed and a worker has it ready."""
    version = stage.add_version("seedling")
    stage.deploy("seedling", version)
    stage.serve(version)
    return stage


def button(app, label):
    return next(b for b in app.button if b.label == label)


def test_without_a_deployed_model_the_playground_says_what_to_do(stage):
    app = stage.open()
    assert not app.exception
    assert "No model is deployed yet" in words(app)
    assert "make demo" in words(app)


def test_a_deployed_model_that_no_worker_has_yet_is_said_to_be_loading(stage):
    stage.deploy("seedling", stage.add_version("seedling"))
    assert "seedling is being loaded" in words(stage.open())


def test_a_completion_is_shown_after_its_prompt_and_never_as_html(served):
    served.gateway.script = [" <b>bold</b>", " & $x$"]
    app = served.open()
    app.text_area(key="prompt").set_value("Il était")
    app.button(key="start").click().run()
    assert not app.exception
    assert '<span class="an-prompt">Il était</span>' in html(app)
    assert '<span class="an-added"> &lt;b&gt;bold&lt;/b&gt; &amp; $x$</span>' in html(app)
    (request,) = served.gateway.requests
    assert (request.model, request.prompt) == ("seedling", "Il était")


def test_settings_reach_the_gateway(served):
    app = served.open()
    app.slider(key="temperature").set_value(0.5)
    app.slider(key="top_p").set_value(0.8)
    app.number_input(key="top_k").set_value(40)
    app.slider(key="repetition_penalty").set_value(1.3)
    app.slider(key="max_tokens").set_value(12)
    app.number_input(key="seed").set_value(7)
    app.button(key="start").click().run()
    sampling = served.gateway.requests[0].sampling
    assert (sampling.top_k, sampling.max_tokens, sampling.seed) == (40, 12, 7)
    assert sampling.temperature == pytest.approx(0.5)
    assert sampling.top_p == pytest.approx(0.8)
    assert sampling.repetition_penalty == pytest.approx(1.3)


def test_choosing_a_language_brings_its_prompt(served):
    app = served.open()
    app.selectbox(key="language").set_value("ar").run()
    assert app.text_area(key="prompt").value.startswith("يولد")


def test_aliases_come_before_bare_versions_and_two_models_answer_side_by_side(served):
    other = served.add_version("seedling-z")
    served.client.deployments.create(other, name="other")
    served.serve("seedling@1", other)
    served.gateway.script = ["x"]
    app = served.open()
    assert app.selectbox(key="model").options == ["seedling  ·  seedling@1", "seedling-z@1"]
    app.selectbox(key="second").select("seedling-z@1").run()
    app.button(key="start").click().run()
    assert {request.model for request in served.gateway.requests} == {"seedling", "seedling-z@1"}
    assert html(app).count("an-added") == 2


def test_a_link_opens_the_playground_with_its_model(served):
    other = served.add_version("seedling-z")
    served.client.deployments.create(other, name="other")
    served.serve("seedling@1", other)
    assert served.open(model=other).selectbox(key="model").value.version == other


def test_a_failed_completion_shows_the_servers_words(served):
    served.gateway.error = (grpc.StatusCode.INVALID_ARGUMENT, "the prompt has 3000 tokens; the model serves 2048")
    app = served.open()
    app.button(key="start").click().run()
    assert "the prompt has 3000 tokens; the model serves 2048" in words(app)


def test_who_has_not_accepted_sees_the_licence_and_a_button_and_then_generates(stage):
    version = stage.add_version("rail", licence=RAIL)
    stage.deploy("rail", version)
    stage.serve(version)
    stage.gateway.script = [" text"]
    app = stage.open()
    assert not app.exception
    page = words(app)
    assert "BigScience RAIL License v1.0 comes first" in page
    assert "12. To provide medical advice" in page
    assert "Section III: CONDITIONS OF USAGE" in page
    assert app.button(key="start").disabled
    app.button(key=f"accept-{RAIL}").click().run()
    assert [found.licence for found in stage.client.licences.accepted()] == [RAIL]
    assert "comes first" not in words(app)
    app.button(key="start").click().run()
    assert not app.exception
    assert "an-added" in html(app)


def test_a_fine_tune_starts_once_its_bases_licence_is_accepted(stage):
    stage.deploy("rail", stage.add_version("rail", licence=RAIL))
    stage.add_dataset("tasks")
    app = stage.open("finetune")
    app.multiselect(key="datasets").select("tasks · tasks, 3 rows").run()
    assert "comes first" in words(app)
    assert button(app, "Start training").disabled
    app.button(key=f"accept-{RAIL}").click().run()
    button(app, "Start training").click().run()
    assert not app.exception
    assert [job.fine_tune.base for job in stage.client.jobs.list()] == ["rail@1"]


def test_a_model_whose_licence_asks_for_nothing_is_used_as_ever(served):
    app = served.open()
    assert "comes first" not in words(app)
    assert not app.button(key="start").disabled


def test_when_the_registry_is_down_the_page_names_it_and_the_remedy(stage, monkeypatch):
    monkeypatch.setenv("ANTHESIS_REGISTRY_ADDRESS", "127.0.0.1:9")
    app = stage.open("models")
    assert not app.exception
    assert "Cannot reach the registry at `127.0.0.1:9`" in words(app)
    assert "make up" in words(app)


def test_without_a_key_the_page_says_how_one_is_made(stage, monkeypatch):
    monkeypatch.setenv("ANTHESIS_DATA", "/nonexistent")
    app = stage.open("models")
    assert "did not accept the API key" in words(app)
    assert "make up" in words(app)


def test_tokens_are_boxed_and_counted(served):
    app = served.open("tokens")
    app.text_area(key="token_text").set_value("né à").run()
    page = html(app)
    assert page.count('"an-shared"') == 2  # é and à, a token per byte
    assert page.count("an-bytes") == 4
    assert "<dt>Tokens</dt><dd>6</dd>" in page
    assert "<dt>Tokens per word</dt><dd>3.00</dd>" in page
    assert "<dt>Tokens per byte</dt><dd>1.00</dd>" in page


def test_a_fine_tune_is_submitted_and_its_page_opens(stage):
    stage.deploy("seedling", stage.add_version("seedling"))
    stage.add_dataset("tasks")
    app = stage.open("finetune")
    assert button(app, "Start training").disabled
    app.multiselect(key="datasets").select("tasks · tasks, 3 rows")
    app.number_input(key="steps").set_value(25)
    app.run()
    button(app, "Start training").click().run()
    assert not app.exception
    (job,) = stage.client.jobs.list()
    assert job.fine_tune.base == "seedling@1"
    assert job.fine_tune.output_model == "seedling-tuned"
    assert job.fine_tune.options.steps == 25
    assert job.id in words(app)


def test_a_refused_hyper_parameter_is_named(stage):
    stage.deploy("seedling", stage.add_version("seedling"))
    stage.add_dataset("tasks")
    app = stage.open("finetune")
    app.multiselect(key="datasets").select("tasks · tasks, 3 rows")
    app.number_input(key="rate-All parameters").set_value(0.0)
    app.run()
    button(app, "Start training").click().run()
    assert "learning_rate" in words(app)
    assert not stage.client.jobs.list()


def test_every_bad_row_of_an_upload_is_listed(stage):
    stage.deploy("seedling", stage.add_version("seedling"))
    app = stage.open("finetune")
    app.file_uploader(key="file").upload("rows.jsonl", b'{"inputs": "a", "targets": "b"}\n{"inputs": 3}\nnot json\n')
    app.run()
    button(app, "Upload").click().run()
    assert "row 2" in words(app)
    assert "row 3" in words(app)
    assert not stage.client.datasets.list()


def test_an_uploaded_dataset_is_chosen(stage):
    stage.deploy("seedling", stage.add_version("seedling"))
    app = stage.open("finetune")
    app.file_uploader(key="file").upload("Rows.jsonl", b'{"inputs": "a", "targets": "b"}\n')
    app.run()
    button(app, "Upload").click().run()
    assert [dataset.name for dataset in stage.client.datasets.list()] == ["rows"]
    assert app.multiselect(key="datasets").value == ["rows"]


def test_a_table_is_uploaded_by_its_columns_and_a_name_that_is_there_gets_a_version(stage):
    stage.deploy("seedling", stage.add_version("seedling"))
    stage.add_dataset("rows")
    app = stage.open("finetune")
    app.file_uploader(key="file").upload("Rows.csv", b"question,targets\na,b\n")
    app.run()
    app.text_input(key="columns").set_value("inputs = question").run()
    button(app, "Upload").click().run()
    assert not app.exception
    assert [dataset.version for dataset in stage.client.datasets.versions("rows")] == [2, 1]
    assert app.multiselect(key="datasets").value == ["rows"]
    assert "rows (version 2) · tasks, 1 rows" in app.multiselect(key="datasets").options
    button(app, "Start training").click().run()
    assert [list(job.fine_tune.datasets) for job in stage.client.jobs.list()] == [["rows@2"]]


def test_the_chosen_data_are_shown_and_reported_on(stage):
    stage.deploy("seedling", stage.add_version("seedling"))
    stage.add_dataset("tasks")
    app = stage.open("finetune")
    app.multiselect(key="datasets").select("tasks · tasks, 3 rows").run()
    assert app.dataframe[0].value.to_dict("records")[0] == {"row": 1, "inputs": "in", "targets": "out"}
    assert "No report on all of its rows yet" in words(app)
    app.button(key="draw").click().run()
    assert len(app.dataframe[0].value) == 3
    app.button(key="check").click().run()
    assert not app.exception
    (job,) = stage.client.jobs.list()
    assert (job.validate_dataset.dataset, job.validate_dataset.base) == ("tasks@1", "seedling@1")
    report = {
        **{"format": 1, "dataset": "tasks@1", "rows": 3, "sequence_length": 512},
        "bad": {"rows": 1, "reasons": [{"reason": "white space only", "rows": 1, "first": [{"row": 2}]}]},
        "duplicates": {"exact": {"rows": 2, "first": []}, "near": {"rows": 0, "compared_rows": 1, "first": []}},
        "lengths": {
            **{"tokens": 9, "mean": 3.0, "most": 4, "bytes_per_token": 2.0},
            "longer_than_sequence": {"rows": 0, "share": 0.0},
        },
        "languages": {
            **{"identified_rows": 3, "identified": {"fr": 3}},
            "not_as_declared": {"rows": 0, "first": []},
        },
        "leakage": {"ngram": 13, "held_out": []},
    }
    token = stage.report(job.id)
    digest = stage.client.artifacts.upload_bytes(json.dumps(report).encode()).digest
    files = job_pb2.ModelFiles(files=[registry_pb2.ModelFile(path="report.json", digest=digest)])
    stage.trainer.FinishJob(job_pb2.FinishJobRequest(job_id=job.id, fencing_token=token, succeeded=files))
    for page in (app.run(), stage.open("jobs", job=job.id)):
        assert not page.exception
        assert "1: 1 white space only (rows 2)" in html(page)
        assert "2 the same as an earlier row" in html(page)
    assert "Report on tasks@1" in html(stage.open("jobs"))


@pytest.fixture
def job(stage):
    stage.deploy("seedling", stage.add_version("seedling"))
    stage.add_dataset("tasks")
    spec = FineTuneSpec(output_model="tuned", base="seedling", datasets=["tasks"], options=TrainOptions(steps=10))
    return stage.client.jobs.create(spec)


def test_a_running_job_shows_its_figures_and_its_curve_grows(stage, job):
    token = stage.report(job.id, 4.0, 3.5)
    app = stage.open("jobs", job=job.id)
    page = html(app)
    assert "Running" in page
    assert "<dt>Loss</dt><dd>3.5000</dd>" in page
    assert "<dt>Time left</dt><dd>1 min 15 s</dd>" in page
    assert "<dt>Samples seen</dt><dd>4</dd>" in page
    assert "<dt>Model FLOP/s</dt><dd>3.0 GFLOP/s</dd>" in page
    assert "<dt>Hardware FLOP/s</dt><dd>4.0 GFLOP/s</dd>" in page
    history = app.session_state["histories"][job.id]
    assert [point["loss"] for point in history.points] == [4.0, 3.5]
    stage.renew(job.id, token, 3.25, first_step=3)
    app.run()
    assert [point["step"] for point in history.points] == [1, 2, 3]
    assert app.get("progress")[0].proto.text == "Step 3 of 10"


def test_a_job_can_be_cancelled(stage, job):
    app = stage.open("jobs", job=job.id)
    button(app, "Cancel this job").click().run()
    assert not app.exception
    assert "Cancelled" in html(app)


def test_a_job_can_be_paused_and_resumed(stage, job):
    app = stage.open("jobs", job=job.id)
    button(app, "Pause this job").click().run()
    assert not app.exception
    assert "Paused" in html(app)
    button(app, "Resume this job").click().run()
    assert not app.exception
    assert "Pending" in html(app)


def test_a_job_shows_the_last_lines_that_it_printed(stage, job):
    token = stage.report(job.id, 4.0)
    printed = "".join(f"line {number}\n" for number in range(300)) + "<b>bold</b>\n"
    stage.trainer.RenewLease(job_pb2.RenewLeaseRequest(job_id=job.id, fencing_token=token, log_text=printed))
    app = stage.open("jobs", job=job.id)
    [shown] = [code.value for code in app.code]
    assert shown.splitlines() == [*(f"line {number}" for number in range(101, 300)), "<b>bold</b>"]


def test_jobs_are_listed_with_their_state(stage, job):
    page = html(stage.open("jobs"))
    assert job.id in page
    assert "Pending" in page


def test_models_show_what_has_weights_and_how_the_others_are_imported(stage):
    stage.deploy("bud", stage.add_version("seedling"))
    app = stage.open("models")
    page = words(app)
    assert "With weights (1)" in page
    assert "alias bud" in page
    assert "bigscience/bloomz-7b1-mt" in page
    assert "anthesis models import bigscience/bloom" in page


def test_a_version_shows_licence_languages_lineage_and_files(stage):
    parent = stage.add_version("seedling")
    child = stage.add_version("child", parent=parent)
    app = stage.open("models", model="child")
    page = words(app)
    assert not app.exception
    assert child in page
    assert "apache-2.0" in page
    assert "العربية · Arabic" in page
    graph = app.get("graphviz_chart")[0].proto.spec
    assert '"seedling@1" -> "child@1"' in graph


def test_a_models_page_shows_its_aliases_history_and_rolls_one_back(stage):
    first, second = stage.add_version("seedling"), stage.add_version("seedling")
    stage.client.aliases.set("bud", first)
    stage.client.aliases.set("bud", second, reason="fewer errors")
    app = stage.open("models", model="seedling")
    shown = app.dataframe[0].value
    assert list(shown["version"]) == [second, first]
    assert (shown["reason"][0], shown["by"][0], shown["change"][0]) == ("fewer errors", "admin", "set")
    app.text_input(key="reason-bud-2").set_value("more errors")
    app.button(key="rollback-bud-2").click().run()
    assert not app.exception
    newest = next(stage.client.aliases.history("bud"))
    assert (newest.version, newest.generation, newest.reason) == (first, 3, "more errors")
    assert list(app.dataframe[0].value["change"]) == ["rollback to 1", "set", "set"]


def test_a_models_page_shows_its_results_beside_the_published_ones(stage):
    stage.add_version("seedling")
    result = EvaluationResult(language="en", metric="acc", value=0.58, n=2376, standard_error=0.0101)
    stage.client.evaluations.record("seedling", "arc_easy", [result], reference="lm-eval 0.4")
    app = stage.open("models", model="seedling")
    assert not app.exception
    assert list(app.dataframe[0].value["seedling@1"]) == ["0.58 ± 0.0101"]
    assert "seedling@1: reported by admin: lm-eval 0.4" in words(app)


def test_a_version_is_measured_by_a_suite_from_its_page(stage):
    version = stage.add_version("seedling")
    held_out = stage.client.artifacts.upload_bytes(text_rows()).digest
    stage.client.datasets.create("held-out", held_out, DATASET_FORMAT_TEXT)
    stage.client.evaluations.create_suite("garden", ["held-out"])
    stage.client.evaluations.create_lm_eval("quiz", [LmEvalTask(name="xcopa_et")])
    app = stage.open("models", model="seedling")
    assert app.selectbox(key=f"measure-by-{version}").options == ["garden@1", "quiz@1"]
    app.button(key=f"measure-{version}").click().run()
    assert not app.exception
    [job] = stage.client.jobs.list()
    assert (job.evaluate.version, job.evaluate.suite) == (version, "garden@1")
    assert f"Measure {version} by garden@1" in words(stage.open("jobs", job=job.id))
    app = stage.open("finetune")
    assert app.selectbox(key="evaluate_with").options == ["", "garden@1"]


def test_the_page_of_a_published_model_shows_what_was_published(stage):
    app = stage.open("models", model="bigscience/bloomz")
    app.selectbox(key="suite").set_value("xnli@1").run()
    assert not app.exception
    shown = app.dataframe[0].value
    column = "bigscience/bloomz, published"
    row = shown[(shown["language"] == "ar") & (shown["metric"] == "accuracy_median (higher is better)")]
    assert list(row[column]) == ["54.38"]
    assert "bigscience-workshop/xmtf@5caa1b12" in words(app)


def test_own_and_published_results_stand_in_one_row():
    published = Evaluation(model="bigscience/bloom", source=EVALUATION_SOURCE_PUBLISHED)
    published.results.add(language="en", metric="acc", value=0.726, higher_is_better=True)
    own = Evaluation(model="tuned", version="tuned@1", source=EVALUATION_SOURCE_REPORTED)
    own.results.add(language="en", metric="acc", value=0.7431, standard_error=0.009, higher_is_better=True)
    assert table([published, own]) == [
        {
            "language": "en",
            "metric": "acc (higher is better)",
            "tuned@1": "0.7431 ± 0.009",
            "bigscience/bloom, published": "0.726",
        }
    ]


def test_a_rollback_that_was_clicked_on_a_page_that_fell_behind_undoes_nothing(stage):
    first, second = stage.add_version("seedling"), stage.add_version("seedling")
    stage.client.aliases.set("bud", first)
    app = stage.open("models", model="seedling")
    stage.client.aliases.set("bud", second)
    app.button(key="rollback-bud-1").click().run()
    assert not app.exception
    assert stage.client.aliases.resolve("bud").version.name == second
    assert list(app.dataframe[0].value["version"]) == [second, first]


def test_a_version_is_deployed_and_gets_an_alias(stage):
    version = stage.add_version("seedling")
    app = stage.open("models", model="seedling")
    button(app, "Deploy").click().run()
    assert not app.exception
    assert [deployment.target for deployment in stage.client.deployments.list()] == [version]
    app.text_input(key=f"alias-{version}").set_value("mine").run()
    app.button(key=f"point-{version}").click().run()
    assert [(alias.name, alias.version) for alias in stage.client.aliases.list()] == [("mine", version)]


def test_a_card_is_written_on_and_what_another_wrote_meanwhile_is_not_overwritten_unseen(stage):
    stage.add_version("seedling")
    stage.client.models.update_card("seedling", "Of the lab.\n\n## Notes\n\nFirst.")
    app = stage.open("models", model="seedling")
    text = app.text_area(key="card-text-seedling")
    assert text.value == "Of the lab.\n\n## Notes\n\nFirst."
    text.set_value("Of the lab.\n\n## Notes\n\nSecond.")
    button(app, "Save").click().run()
    assert not app.exception
    assert "Second." in words(app)
    assert stage.client.models.card("seedling").generation == 2

    stage.client.models.update_card("seedling", "Another's.")
    app.text_area(key="card-text-seedling").set_value("Mine.")
    button(app, "Save").click().run()
    assert "changed it meanwhile**, as shown above. Save again to replace that." in words(app)
    assert app.text_area(key="card-text-seedling").value == "Mine."
    assert stage.client.models.card("seedling").sections[0].text == "Another's."
    button(app, "Save").click().run()
    assert stage.client.models.card("seedling").sections[0].text == "Mine."


def test_a_models_page_shows_its_card_and_draws_no_html_or_picture_that_a_user_wrote(stage):
    version = stage.add_version("seedling")
    stage.client.models.update_card(
        "seedling", "For *gardens*. ![x](http://127.0.0.1:9/x.png)\n\n## Thanks\n\n```\n<b>\n```"
    )
    app = stage.open("models", model="seedling")
    assert not app.exception
    drawn = [element for element in app.markdown if "gardens" in element.value or "<b>" in element.value]
    assert [element.value for element in drawn] == [
        "For *gardens*. !\\[x](http://127.0.0.1:9/x.png)",
        "```\n<b>\n```",
    ]
    assert not any(element.proto.allow_html for element in drawn)
    assert f"`{version}`: a BLOOM model of" in words(app)
    assert "Thanks" in html(app)
    assert "Last changed by admin, generation 1." in words(app)


def test_models_are_searched(stage):
    stage.add_version("seedling")
    stage.add_version("weed")
    stage.client.models.tag("weed", add=["wild"])
    app = stage.open("models")
    app.text_input(key="search").set_value("WILD").run()
    page = words(app)
    assert "With weights (1)" in page
    assert "#wild" in page
    assert "seedling" not in page
    app.text_input(key="search").set_value("%").run()
    assert "None is found." in words(app)
