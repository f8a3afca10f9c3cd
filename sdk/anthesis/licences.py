"""Licences of models, and what has been accepted."""

from collections.abc import Sequence

import grpc

from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import licence_pb2 as pb
from anthesis.v1.licence_pb2_grpc import LicenceServiceStub


class Licences:
    """Some have to be accepted before a version under them is tuned, downloaded or generated with."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = LicenceServiceStub(channel)

    async def list(self) -> Sequence[pb.Licence]:
        """Every licence, without its text."""
        request = pb.ListLicencesRequest(page_size=PAGE_SIZE)
        return [licence async for page in pages(self._stub.ListLicences, request) for licence in page.licences]

    async def get(self, licence: str) -> pb.Licence:
        """With its text and digest. Raises NotFoundError."""
        return (await unary(self._stub.GetLicence(pb.GetLicenceRequest(id=licence)))).licence

    async def create(self, licence: str, *, name: str, text: str, must_accept: bool) -> pb.Licence:
        """Register one for good; needs an admin's key. Raises AlreadyExistsError, InvalidArgumentError."""
        request = pb.CreateLicenceRequest(id=licence, name=name, text=text, must_accept=must_accept)
        return (await unary(self._stub.CreateLicence(request))).licence

    async def accept(self, licence: str, digest: str) -> pb.Acceptance:
        """Accept the text that has `digest`. Raises NotFoundError, FailedPreconditionError for another text's."""
        request = pb.AcceptLicenceRequest(licence=licence, digest=digest)
        return (await unary(self._stub.AcceptLicence(request))).acceptance

    async def accepted(self, principal: str = "", *, everyone: bool = False) -> Sequence[pb.Acceptance]:
        """What the caller (or, for admins, another or everyone) has accepted, newest first."""
        request = pb.ListAcceptancesRequest(principal=principal, everyone=everyone, page_size=PAGE_SIZE)
        return [found async for page in pages(self._stub.ListAcceptances, request) for found in page.acceptances]

    async def missing(self, version: str) -> Sequence[pb.Licence]:
        """What the caller has still to accept before using a version; with texts. Raises NotFoundError."""
        return (await unary(self._stub.CheckAcceptance(pb.CheckAcceptanceRequest(version=version)))).missing
