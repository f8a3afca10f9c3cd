"""Webhooks: a URL is told about the caller's jobs."""

from collections.abc import AsyncGenerator, Iterable, Sequence

import grpc

from anthesis.rpc import PAGE_SIZE, pages, unary
from anthesis.v1 import webhook_pb2 as pb
from anthesis.v1.webhook_pb2_grpc import WebhookServiceStub


class Webhooks:
    """Each change of state of the caller's jobs is sent to the caller's URLs, signed, until it is answered with 2xx."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = WebhookServiceStub(channel)

    async def create(self, url: str, event_types: Iterable[str] = ()) -> pb.CreateWebhookResponse:
        """A new one; its `secret` is shown this once. `event_types`: "job.succeeded" and so on; none: all.

        Raises InvalidArgumentError for a URL that is not https or leads to an address that is not public.
        """
        request = pb.CreateWebhookRequest(url=url, event_types=event_types)
        return await unary(self._stub.CreateWebhook(request))

    async def list(self, *, everyone: bool = False) -> Sequence[pb.Webhook]:
        """The caller's (or, for admins, everyone's), newest first."""
        request = pb.ListWebhooksRequest(page_size=PAGE_SIZE, everyone=everyone)
        return [webhook async for page in pages(self._stub.ListWebhooks, request) for webhook in page.webhooks]

    async def delete(self, webhook_id: str) -> None:
        """With its deliveries. Raises NotFoundError."""
        await unary(self._stub.DeleteWebhook(pb.DeleteWebhookRequest(id=webhook_id)))

    async def deliveries(self, webhook_id: str) -> AsyncGenerator[pb.WebhookDelivery, None]:
        """What was and is being sent, newest first, a page at a time. Raises NotFoundError."""
        request = pb.ListWebhookDeliveriesRequest(webhook_id=webhook_id, page_size=PAGE_SIZE)
        async for page in pages(self._stub.ListWebhookDeliveries, request):
            for delivery in page.deliveries:
                yield delivery

    async def redeliver(self, delivery_id: str) -> pb.WebhookDelivery:
        """Send one again, under the same id. Raises FailedPreconditionError while it is still being tried."""
        return (await unary(self._stub.RedeliverWebhook(pb.RedeliverWebhookRequest(id=delivery_id)))).delivery
