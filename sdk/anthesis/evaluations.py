"""How good versions are: suites, results by language, comparisons."""

from collections.abc import AsyncGenerator, Iterable, Sequence

import grpc

from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import evaluation_pb2 as pb
from anthesis.v1.evaluation_pb2_grpc import EvaluationServiceStub


class Evaluations:
    """Makes suites, records and lists results, compares versions. What a job measures by: see EvaluateSpec."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = EvaluationServiceStub(channel)

    async def create_suite(
        self, family: str, datasets: Iterable[str], *, sequence_length: int = 0, description: str = ""
    ) -> pb.Suite:
        """The next version of a suite of bits per byte over datasets held out; its newest where that says the same.

        sequence_length: tokens that a text is cut into; 0: 512. Raises NotFoundError, InvalidArgumentError.
        """
        suite = pb.Suite(
            family=family,
            kind=pb.SUITE_KIND_BITS_PER_BYTE,
            datasets=[pb.SuiteDataset(name=name) for name in datasets],
            sequence_length=sequence_length,
            description=description,
        )
        return (await unary(self._stub.CreateSuite(pb.CreateSuiteRequest(suite=suite)))).suite

    async def create_benchmark(
        self, family: str, *, task: str, metrics: Iterable[pb.Metric], description: str = ""
    ) -> pb.Suite:
        """The same of a benchmark that a program of its own measures; `record` takes its results."""
        kind = pb.SUITE_KIND_BENCHMARK
        suite = pb.Suite(family=family, kind=kind, task=task, metrics=metrics, description=description)
        return (await unary(self._stub.CreateSuite(pb.CreateSuiteRequest(suite=suite)))).suite

    async def create_lm_eval(
        self,
        family: str,
        tasks: Iterable[pb.LmEvalTask],
        *,
        metrics: Iterable[pb.Metric] = (),
        num_fewshot: int = 0,
        limit: int = 0,
        description: str = "",
    ) -> pb.Suite:
        """The same of tasks of lm-evaluation-harness, by name, or of a dataset's rows with a template.

        metrics: that are kept; none: acc, acc_norm, exact_match and bits_per_byte. num_fewshot: answered examples
        before a question. limit: questions of a task; 0: all. Raises NotFoundError, InvalidArgumentError.
        """
        suite = pb.Suite(
            family=family,
            kind=pb.SUITE_KIND_LM_EVAL,
            tasks=tasks,
            metrics=metrics,
            num_fewshot=num_fewshot,
            limit=limit,
            description=description,
        )
        return (await unary(self._stub.CreateSuite(pb.CreateSuiteRequest(suite=suite)))).suite

    async def get_suite(self, name: str) -> pb.Suite:
        """By "<family>@<version>", or by family: its newest version. Raises NotFoundError."""
        return (await unary(self._stub.GetSuite(pb.GetSuiteRequest(name=name)))).suite

    async def suites(self) -> Sequence[pb.Suite]:
        """Every suite, by name."""
        request = pb.ListSuitesRequest(page_size=PAGE_SIZE)
        return [suite async for page in pages(self._stub.ListSuites, request) for suite in page.suites]

    async def record(
        self, version: str, suite: str, results: Iterable[pb.EvaluationResult], *, reference: str = ""
    ) -> pb.Evaluation:
        """Record what was measured elsewhere by a benchmark; it is marked as reported by the caller.

        reference: how, in a line. Raises InvalidArgumentError, NotFoundError.
        """
        request = pb.RecordEvaluationRequest(version=version, suite=suite, results=results, reference=reference)
        return (await unary(self._stub.RecordEvaluation(request))).evaluation

    async def list(
        self, name: str = "", *, suite: str = "", beside_published: bool = False
    ) -> AsyncGenerator[pb.Evaluation, None]:
        """Evaluations of a model's versions, of a version or an alias, or of all: published ones, then the newest.

        beside_published: those published for the model, and for the models that it comes from, too.
        """
        request = pb.ListEvaluationsRequest(
            page_size=PAGE_SIZE, name=name, suite=suite, beside_published=beside_published
        )
        async for page in pages(self._stub.ListEvaluations, request):
            for evaluation in page.evaluations:
                yield evaluation

    async def compare(self, version: str, base: str, suite: str) -> pb.CompareEvaluationsResponse:
        """A version against another, language by language, with the chance that a difference is none.

        Raises FailedPreconditionError where one has no evaluation by the suite, NotFoundError.
        """
        request = pb.CompareEvaluationsRequest(version=version, base=base, suite=suite)
        return await unary(self._stub.CompareEvaluations(request))


class Gates:
    """What a version must not lose before an alias moves to it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = EvaluationServiceStub(channel)

    async def set(
        self, alias: str, suite: str, *, max_regression_percent: float, languages: Iterable[str] = ()
    ) -> pb.Gate:
        """From now on the alias moves only where no language gets worse by more than so many percent bits per byte.

        languages: those that count; none: all that were measured. Raises NotFoundError, InvalidArgumentError.
        """
        gate = pb.Gate(alias=alias, suite=suite, max_regression_percent=max_regression_percent, languages=languages)
        return (await unary(self._stub.SetGate(pb.SetGateRequest(gate=gate)))).gate

    async def get(self, alias: str) -> pb.Gate:
        """Raises NotFoundError where the alias has none."""
        return (await unary(self._stub.GetGate(pb.GetGateRequest(alias=alias)))).gate

    async def list(self) -> Sequence[pb.Gate]:
        """Every gate, by alias."""
        request = pb.ListGatesRequest(page_size=PAGE_SIZE)
        return [gate async for page in pages(self._stub.ListGates, request) for gate in page.gates]

    async def delete(self, alias: str) -> None:
        """Raises NotFoundError where the alias has none."""
        await unary(self._stub.DeleteGate(pb.DeleteGateRequest(alias=alias)))
