"""A gateway whose words a test chooses, for the playground's pages: it can be slow, fall silent, or fail."""

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from anthesis.v1 import generation_pb2 as pb
from anthesis.v1 import generation_pb2_grpc
from anthesis.v1.inference_pb2 import FINISH_REASON_STOP


class ScriptedGateway(generation_pb2_grpc.GenerationServiceServicer):
    """Streams `script`, one token a message. With `silent`, it says no more after that until it is cancelled."""

    def __init__(self) -> None:
        self.script: list[str] = []
        self.token_s = 0.0
        self.silent = False
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.requests: list[Any] = []
        self.said_all = threading.Event()
        self.cancelled = threading.Event()

    def Generate(self, request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        self.requests.append(request)
        context.add_callback(lambda: None if context.code() else self.cancelled.set())
        if self.error:
            context.abort(*self.error)
        for number, text in enumerate(self.script):
            time.sleep(self.token_s)
            yield pb.GenerateResponse(text=text, tokens=[pb.TextToken(id=number, bytes=text.encode())])
        self.said_all.set()
        if self.silent:
            self.cancelled.wait(30)
            return
        context.set_code(grpc.StatusCode.OK)
        usage = pb.Usage(prompt_tokens=3, completion_tokens=len(self.script))
        yield pb.GenerateResponse(finish_reason=FINISH_REASON_STOP, usage=usage, model_version=f"{request.model}@1")

    def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        """A token per byte."""
        data = request.text.encode()
        return pb.TokenizeResponse(ids=list(data), tokens=[bytes([byte]) for byte in data], text=request.text)

    def Count(self, request: pb.CountRequest, context: Any) -> pb.CountResponse:
        return pb.CountResponse(counts=[len(text.encode()) for text in request.texts])


@contextmanager
def running_scripted_gateway() -> Iterator[tuple[ScriptedGateway, str]]:
    """The gateway and its address, on a free port."""
    gateway = ScriptedGateway()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield gateway, f"127.0.0.1:{port}"
    finally:
        gateway.cancelled.set()
        server.stop(0).wait()
