"""gRPC channels that send the API key with every call."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc

# Vocabulary tables (about 3 MB for 250,680 tokens) and batches of texts exceed gRPC's default of 4 MiB.
MAX_MESSAGE_BYTES = 64 << 20
# A status travels as metadata, by default at most 8 KiB of it: a report of a thousand bad rows is longer.
MAX_METADATA_BYTES = 1 << 20
OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),  # servers: or they end a quiet stream after 3 pings
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def open_channel(address: str, api_key: str, *, root_certificates: bytes | None = None) -> grpc.Channel:
    """A channel to `address` ("host:port"); TLS when `root_certificates` (PEM) are given."""
    if root_certificates is None:
        channel = grpc.insecure_channel(address, options=OPTIONS)
    else:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates), options=OPTIONS)
    return grpc.intercept_channel(channel, _SendKey(api_key))


def open_aio_channel(
    address: str,
    api_key: str,
    *,
    root_certificates: bytes | None = None,
    service_config: str | None = None,
    metadata: Callable[[], Sequence[tuple[str, str]]] = tuple,
) -> grpc.aio.Channel:
    """`open_channel` for asyncio. Keep the channel as long as its stubs: one that is collected closes.

    `service_config` is gRPC's JSON of deadlines and retries per method, `metadata` asked at each call for more of it.
    """
    options = OPTIONS if service_config is None else (*OPTIONS, ("grpc.service_config", service_config))
    interceptors = [kind(api_key, metadata) for kind in (_UnaryUnary, _UnaryStream, _StreamUnary)]
    if root_certificates is None:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    credentials = grpc.ssl_channel_credentials(root_certificates)
    return grpc.aio.secure_channel(address, credentials, options=options, interceptors=interceptors)


class _Details(grpc.ClientCallDetails):
    """A call's details with the key added to its metadata."""

    def __init__(self, details: Any, api_key: str) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = (*(details.metadata or ()), ("authorization", f"Bearer {api_key}"))
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = getattr(details, "compression", None)


class _SendKey(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):  # type: ignore[misc, type-arg, unused-ignore]
    def __init__(self, api_key: str) -> None:
        self._api_key = api_key

    def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(_Details(details, self._api_key), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_unary = _intercept  # type: ignore[assignment]


class _AioSendKey:
    def __init__(self, api_key: str, metadata: Callable[[], Sequence[tuple[str, str]]]) -> None:
        self._api_key = api_key
        self._metadata = metadata

    async def _intercept(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        with_key = grpc.aio.ClientCallDetails(
            details.method,
            details.timeout,
            grpc.aio.Metadata(
                *(details.metadata or ()), *self._metadata(), ("authorization", f"Bearer {self._api_key}")
            ),
            details.credentials,
            details.wait_for_ready,
        )
        return await continuation(with_key, request)


class _UnaryUnary(_AioSendKey, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc, type-arg, unused-ignore]
    intercept_unary_unary = _AioSendKey._intercept  # type: ignore[assignment]


class _UnaryStream(_AioSendKey, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc, type-arg, unused-ignore]
    intercept_unary_stream = _AioSendKey._intercept  # type: ignore[assignment]


class _StreamUnary(_AioSendKey, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc, type-arg, unused-ignore]
    intercept_stream_unary = _AioSendKey._intercept  # type: ignore[assignment]
