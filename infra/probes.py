"""Is it ready? `python -m infra.probes ADDRESS|URL` exits with 0 when it is; containers' health checks ask so."""

import socket
import sys
import urllib.error
import urllib.request

import grpc
from anthesis.rpc import HEALTH_CHECK, HEALTH_REQUEST, HEALTH_SERVING

PROBE_S = 3.0  # how long one look may take


def serves(address: str) -> bool:
    """The gRPC server at "host:port" says SERVING."""
    with grpc.insecure_channel(address) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(HEALTH_CHECK)
        try:
            return check(HEALTH_REQUEST, timeout=PROBE_S) == HEALTH_SERVING
        except grpc.RpcError:
            return False


def answers(url: str) -> bool:
    """HTTP says 200."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_S) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def pings(path: str) -> bool:
    """Valkey on a Unix socket answers PONG."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PROBE_S)
        try:
            connection.connect(path)
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


if __name__ == "__main__":
    target = sys.argv[1]
    sys.exit(0 if (answers if target.startswith("http") else serves)(target) else 1)
