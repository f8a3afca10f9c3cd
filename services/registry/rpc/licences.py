"""LicenceService: messages in and out."""

from typing import Any

from anthesis.v1 import licence_pb2 as pb
from anthesis.v1 import licence_pb2_grpc

from services.common.auth import current_principal
from services.registry import tables
from services.registry.licences.service import Licences, NewLicence
from services.registry.licences.terms import use_restrictions
from services.registry.rpc import messages

Context = Any


class LicenceRpc(licence_pb2_grpc.LicenceServiceServicer):
    def __init__(self, licences: Licences) -> None:
        self._licences = licences

    async def ListLicences(self, request: pb.ListLicencesRequest, context: Context) -> pb.ListLicencesResponse:
        page = await self._licences.list_licences(messages.page_request(request))
        rows = [_licence(row, with_text=False) for row in page.rows]
        return pb.ListLicencesResponse(licences=rows, next_page_token=page.next_token)

    async def GetLicence(self, request: pb.GetLicenceRequest, context: Context) -> pb.GetLicenceResponse:
        return pb.GetLicenceResponse(licence=_licence(await self._licences.get(request.id)))

    async def CreateLicence(self, request: pb.CreateLicenceRequest, context: Context) -> pb.CreateLicenceResponse:
        new = NewLicence(id=request.id, name=request.name, text=request.text, must_accept=request.must_accept)
        return pb.CreateLicenceResponse(licence=_licence(await self._licences.create(new)))

    async def AcceptLicence(self, request: pb.AcceptLicenceRequest, context: Context) -> pb.AcceptLicenceResponse:
        accepted = await self._licences.accept(current_principal(), request.licence, request.digest)
        return pb.AcceptLicenceResponse(acceptance=_acceptance(accepted))

    async def ListAcceptances(self, request: pb.ListAcceptancesRequest, context: Context) -> pb.ListAcceptancesResponse:
        page = await self._licences.list_acceptances(
            current_principal(), request.principal, messages.page_request(request), everyone=request.everyone
        )
        return pb.ListAcceptancesResponse(acceptances=map(_acceptance, page.rows), next_page_token=page.next_token)

    async def CheckAcceptance(self, request: pb.CheckAcceptanceRequest, context: Context) -> pb.CheckAcceptanceResponse:
        pending = await self._licences.pending(current_principal(), request.principal, request.version)
        return pb.CheckAcceptanceResponse(missing=map(_licence, pending.licences), refusal=pending.refusal)


def _licence(row: tables.Licence, *, with_text: bool = True) -> pb.Licence:
    return pb.Licence(
        id=row.id,
        name=row.name,
        text=row.text if with_text else "",
        digest=row.digest,
        must_accept=row.must_accept,
        use_restrictions=use_restrictions(row.text) if with_text else "",
        create_time=messages.timestamp(row.create_time),
    )


def _acceptance(row: tables.LicenceAcceptance) -> pb.Acceptance:
    return pb.Acceptance(
        principal=row.principal,
        licence=row.licence,
        digest=row.digest,
        time=messages.timestamp(row.time),
        key_id=row.key_id,
    )
