"""EvaluationService: messages in and out."""

from typing import Any

from anthesis.v1 import evaluation_pb2 as pb
from anthesis.v1 import evaluation_pb2_grpc, registry_pb2

from services.common.auth import current_principal
from services.registry import tables
from services.registry.evaluations.comparison import Comparisons, Difference
from services.registry.evaluations.gates import Gates, NewGate
from services.registry.evaluations.harness import HarnessTask, metric_of
from services.registry.evaluations.service import Evaluations, Found, NewEvaluation, NewResult
from services.registry.evaluations.suites import Metric, NewSuite, Suites
from services.registry.rpc import messages

Context = Any


class EvaluationRpc(evaluation_pb2_grpc.EvaluationServiceServicer):
    def __init__(self, suites: Suites, evaluations: Evaluations, comparisons: Comparisons, gates: Gates) -> None:
        self._suites = suites
        self._evaluations = evaluations
        self._comparisons = comparisons
        self._gates = gates

    async def CreateSuite(self, request: pb.CreateSuiteRequest, context: Context) -> pb.CreateSuiteResponse:
        asked = request.suite
        new = NewSuite(
            family=asked.family,
            kind=messages.enum_name(pb.SuiteKind, "SUITE_KIND_", asked.kind),
            description=asked.description,
            datasets=[dataset.name for dataset in asked.datasets],
            sequence_length=asked.sequence_length,
            task=asked.task,
            metrics=[Metric(name=found.name, higher_is_better=found.higher_is_better) for found in asked.metrics],
            tasks=[_read_task(task) for task in asked.tasks],
            num_fewshot=asked.num_fewshot,
            limit=asked.limit,
            created_by=current_principal().name,
        )
        return pb.CreateSuiteResponse(suite=suite(await self._suites.create(new)))

    async def GetSuite(self, request: pb.GetSuiteRequest, context: Context) -> pb.GetSuiteResponse:
        return pb.GetSuiteResponse(suite=suite(await self._suites.get(request.name)))

    async def ListSuites(self, request: pb.ListSuitesRequest, context: Context) -> pb.ListSuitesResponse:
        page = await self._suites.list_suites(messages.page_request(request))
        return pb.ListSuitesResponse(suites=map(suite, page.rows), next_page_token=page.next_token)

    async def RecordEvaluation(
        self, request: pb.RecordEvaluationRequest, context: Context
    ) -> pb.RecordEvaluationResponse:
        new = NewEvaluation(
            version=request.version,
            suite=request.suite,
            results=[_read_result(result) for result in request.results],
            reference=request.reference,
            created_by=current_principal().name,
        )
        return pb.RecordEvaluationResponse(evaluation=_evaluation(await self._evaluations.record(new)))

    async def ListEvaluations(self, request: pb.ListEvaluationsRequest, context: Context) -> pb.ListEvaluationsResponse:
        page = await self._evaluations.list_evaluations(
            request.name, request.suite, messages.page_request(request), beside_published=request.beside_published
        )
        return pb.ListEvaluationsResponse(evaluations=map(_evaluation, page.rows), next_page_token=page.next_token)

    async def CompareEvaluations(
        self, request: pb.CompareEvaluationsRequest, context: Context
    ) -> pb.CompareEvaluationsResponse:
        compared = await self._comparisons.compare(request.version, request.base, request.suite)
        return pb.CompareEvaluationsResponse(
            version=compared.found.evaluation.version or "",
            base=compared.base.evaluation.version or "",
            suite=compared.found.suite.name,
            version_evaluation=compared.found.evaluation.id,
            base_evaluation=compared.base.evaluation.id,
            differences=map(_difference, compared.differences),
        )

    async def SetGate(self, request: pb.SetGateRequest, context: Context) -> pb.SetGateResponse:
        asked = request.gate
        new = NewGate(
            alias=asked.alias,
            suite=asked.suite,
            max_regression_percent=asked.max_regression_percent,
            languages=list(asked.languages),
            created_by=current_principal().name,
        )
        return pb.SetGateResponse(gate=_gate(await self._gates.set(new)))

    async def GetGate(self, request: pb.GetGateRequest, context: Context) -> pb.GetGateResponse:
        return pb.GetGateResponse(gate=_gate(await self._gates.get(request.alias)))

    async def ListGates(self, request: pb.ListGatesRequest, context: Context) -> pb.ListGatesResponse:
        page = await self._gates.list_gates(messages.page_request(request))
        return pb.ListGatesResponse(gates=map(_gate, page.rows), next_page_token=page.next_token)

    async def DeleteGate(self, request: pb.DeleteGateRequest, context: Context) -> pb.DeleteGateResponse:
        await self._gates.delete(request.alias)
        return pb.DeleteGateResponse()


def _read_task(message: pb.LmEvalTask) -> HarnessTask:
    return HarnessTask(
        name=message.name,
        language=message.language,
        dataset=message.dataset,
        jinja=message.jinja,
        answer_choices=message.answer_choices,
    )


def suite(row: tables.EvaluationSuite) -> pb.Suite:
    harness = row.harness or {"tasks": [], "num_fewshot": 0, "limit": 0}
    return pb.Suite(
        name=row.name,
        family=row.family,
        version=row.number,
        kind=pb.SuiteKind.Value(f"SUITE_KIND_{row.kind}"),
        description=row.description,
        datasets=[_suite_dataset(dataset) for dataset in row.datasets],
        sequence_length=row.sequence_length,
        task=row.task,
        metrics=[pb.Metric(**metric) for metric in row.metrics],
        published=row.published,
        created_by=row.created_by,
        create_time=messages.timestamp(row.create_time),
        tasks=[pb.LmEvalTask(**task) for task in harness["tasks"]],
        num_fewshot=harness["num_fewshot"],
        limit=harness["limit"],
    )


def _suite_dataset(row: dict[str, Any]) -> pb.SuiteDataset:
    form = registry_pb2.DatasetFormat.Value(f"DATASET_FORMAT_{row['format']}")
    return pb.SuiteDataset(**row | {"format": form})


def _read_result(message: pb.EvaluationResult) -> NewResult:
    return NewResult(
        language=message.language,
        metric=message.metric,
        value=message.value,
        n=message.n if message.HasField("n") else None,
        standard_error=message.standard_error if message.HasField("standard_error") else None,
    )


def _evaluation(found: Found) -> pb.Evaluation:
    row = found.evaluation
    better = {metric["name"]: bool(metric["higher_is_better"]) for metric in found.suite.metrics}
    return pb.Evaluation(
        id=row.id,
        model=row.model,
        version=row.version or "",
        suite=row.suite,
        source=pb.EvaluationSource.Value(f"EVALUATION_SOURCE_{row.source}"),
        job_id=row.job_id or "",
        reference=row.reference,
        created_by=row.created_by,
        create_time=messages.timestamp(row.create_time),
        results=[
            pb.EvaluationResult(
                language=result.language,
                metric=result.metric,
                value=result.value,
                n=result.n,
                standard_error=result.standard_error,
                higher_is_better=better[metric_of(found.suite, result.metric)],
            )
            for result in found.results
        ],
    )


def _difference(found: Difference) -> pb.EvaluationDifference:
    significance = found.significance
    return pb.EvaluationDifference(
        language=found.language,
        metric=found.metric,
        higher_is_better=found.higher_is_better,
        base_value=found.base.value,
        value=found.result.value,
        difference=found.value,
        test=pb.SignificanceTest.Value(f"SIGNIFICANCE_TEST_{significance.test if significance else 'UNSPECIFIED'}"),
        standard_error=significance.standard_error if significance else None,
        p_value=significance.p_value if significance else None,
        p_value_holm=found.p_value_holm,
        n=significance.n if significance else None,
    )


def _gate(row: tables.AliasGate) -> pb.Gate:
    return pb.Gate(
        alias=row.alias,
        suite=row.suite,
        languages=row.languages,
        max_regression_percent=row.max_regression_percent,
        created_by=row.created_by,
        create_time=messages.timestamp(row.create_time),
    )
