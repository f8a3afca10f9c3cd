"""WebhookService: messages in and out."""

from typing import Any

from anthesis.v1 import webhook_pb2 as pb
from anthesis.v1 import webhook_pb2_grpc

from services.common.auth import current_principal
from services.registry import tables
from services.registry.rpc import messages
from services.registry.webhooks.service import Webhooks

Context = Any


class WebhookRpc(webhook_pb2_grpc.WebhookServiceServicer):
    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    async def CreateWebhook(self, request: pb.CreateWebhookRequest, context: Context) -> pb.CreateWebhookResponse:
        created = await self._webhooks.create(current_principal(), request.url, list(request.event_types))
        return pb.CreateWebhookResponse(webhook=_webhook(created.webhook), secret=created.secret)

    async def ListWebhooks(self, request: pb.ListWebhooksRequest, context: Context) -> pb.ListWebhooksResponse:
        page = await self._webhooks.list_webhooks(
            current_principal(), messages.page_request(request), everyone=request.everyone
        )
        return pb.ListWebhooksResponse(webhooks=map(_webhook, page.rows), next_page_token=page.next_token)

    async def DeleteWebhook(self, request: pb.DeleteWebhookRequest, context: Context) -> pb.DeleteWebhookResponse:
        await self._webhooks.delete(current_principal(), request.id)
        return pb.DeleteWebhookResponse()

    async def ListWebhookDeliveries(
        self, request: pb.ListWebhookDeliveriesRequest, context: Context
    ) -> pb.ListWebhookDeliveriesResponse:
        page = await self._webhooks.list_deliveries(
            current_principal(), request.webhook_id, messages.page_request(request)
        )
        return pb.ListWebhookDeliveriesResponse(deliveries=map(_delivery, page.rows), next_page_token=page.next_token)

    async def RedeliverWebhook(
        self, request: pb.RedeliverWebhookRequest, context: Context
    ) -> pb.RedeliverWebhookResponse:
        delivery = await self._webhooks.redeliver(current_principal(), request.id)
        return pb.RedeliverWebhookResponse(delivery=_delivery(delivery))


def _webhook(row: tables.Webhook) -> pb.Webhook:
    return pb.Webhook(
        id=row.id,
        url=row.url,
        event_types=row.event_types,
        created_by=row.created_by,
        create_time=messages.timestamp(row.create_time),
    )


def _delivery(row: tables.WebhookDelivery) -> pb.WebhookDelivery:
    return pb.WebhookDelivery(
        id=row.id,
        webhook_id=row.webhook_id,
        job_id=row.job_id,
        sequence=row.sequence,
        event_type=row.event_type,
        state=pb.WebhookDeliveryState.Value(f"WEBHOOK_DELIVERY_STATE_{row.state}"),
        attempts=row.attempts,
        status_code=row.status_code or 0,
        error=row.error,
        create_time=messages.timestamp(row.create_time),
        last_attempt_time=messages.timestamp(row.last_time),
        next_attempt_time=messages.timestamp(row.next_time),
    )
