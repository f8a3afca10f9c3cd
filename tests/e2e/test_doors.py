"""Every door of the platform, knocked at with grpcurl: by reflection, with a key and without."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from anthesis import Settings

from tests.e2e.conftest import LocalPlatform

GRPCURL = Path(sys.executable).with_name("grpcurl")
EXIT_OF_STATUS = 64  # grpcurl exits with 64 + the status code
UNAUTHENTICATED = EXIT_OF_STATUS + 16
# What a call with an empty request may answer: a verdict on the request, never "no such method" or "internal error".
VERDICTS = {0, *(EXIT_OF_STATUS + code for code in (3, 5, 9, 10))}  # OK, INVALID_ARGUMENT, NOT_FOUND, ...

SERVICES = {
    "gateway": {"anthesis.v1.GenerationService"},
    "tokenizer": {"anthesis.v1.TokenizerService"},
    "inference": {"anthesis.v1.InferenceService"},
    "registry": {"anthesis.v1.RegistryService", "anthesis.v1.JobService"},
}


def grpcurl(*args: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    header = ["-H", f"authorization: Bearer {key}"] if key else []
    command = [str(GRPCURL), "-plaintext", *header, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def address(settings: Settings, service: str) -> str:
    return str(getattr(settings, f"{service}_address"))


@pytest.mark.parametrize("service", SERVICES)
def test_reflection_lists_and_reaches_every_rpc(platform: LocalPlatform, service: str) -> None:
    settings = platform.settings
    where, key = address(settings, service), settings.api_key
    listed = set(grpcurl(where, "list", key=key).stdout.split())
    assert SERVICES[service] <= listed
    for name in sorted(SERVICES[service]):
        methods = grpcurl(where, "list", name, key=key).stdout.split()
        assert methods
        for method in methods:
            # Authenticate's verdict on an empty secret is that of a door without a key.
            request = json.dumps({"secret": key} if method.endswith(".Authenticate") else {})
            answer = grpcurl("-d", request, where, method.replace(name + ".", name + "/"), key=key)
            assert answer.returncode in VERDICTS, f"{method}: {answer.stderr}"


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("key", [None, "an_wrong"])
def test_without_a_right_key_only_health_answers(platform: LocalPlatform, service: str, key: str | None) -> None:
    settings = platform.settings
    where = address(settings, service)
    health = grpcurl("-proto", str(health_proto()), "-import-path", str(health_proto().parent), "-d", "{}", where,
                     "grpc.health.v1.Health/Check", key=key)  # fmt: skip
    assert json.loads(health.stdout) == {"status": "SERVING"}, health.stderr
    assert grpcurl(where, "list", key=key).returncode != 0
    protos = ["-import-path", "protos", *(f"-proto=anthesis/v1/{name}.proto" for name in proto_names())]
    for name in sorted(SERVICES[service]):
        for method in grpcurl(where, "list", name, key=settings.api_key).stdout.split():
            answer = grpcurl(*protos, "-d", "{}", where, method.replace(name + ".", name + "/"), key=key)
            assert answer.returncode == UNAUTHENTICATED, f"{method}: {answer.stdout}{answer.stderr}"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/v1/anything", "/docs", "/openapi.json"])
def test_http_without_a_key_is_refused_but_for_health(platform: LocalPlatform, path: str) -> None:
    base = f"http://{platform.settings.gateway_http_address}"
    with urllib.request.urlopen(f"{base}/health") as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(base + path)
    assert refusal.value.code == 401
    assert json.load(refusal.value)["error"]["code"] == "invalid_api_key"


def proto_names() -> list[str]:
    return ["generation", "inference", "job", "registry", "tokenizer"]


def health_proto() -> Path:
    """grpc.health.v1's definition, which without a key cannot be had by reflection."""
    return Path(__file__).with_name("health.proto")
