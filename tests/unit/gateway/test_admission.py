"""A route that nobody has said who may call keeps the gateway from starting."""

import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import PlainTextResponse

from services.common.access import Permission
from services.common.auth import Principal
from services.gateway.http import Admission


async def authenticate(secret: str) -> Principal:
    return Principal("1", secret, "viewer")


def app_with(*paths: str) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    for path in paths:
        app.get(path)(lambda: PlainTextResponse("ok"))
    return app


def test_a_route_without_an_entry_is_refused() -> None:
    Admission(app_with("/health"), {"GET /health": None}, authenticate)
    with pytest.raises(RuntimeError, match="nobody says who may call GET /v1/secrets; add them to its table of access"):
        Admission(app_with("/health", "/v1/secrets"), {"GET /health": None}, authenticate)


def test_an_entry_without_a_route_is_refused() -> None:
    table = {"GET /health": None, "GET /v1/model": Permission.READ}
    with pytest.raises(RuntimeError, match="names GET /v1/model, which it does not serve"):
        Admission(app_with("/health"), table, authenticate)


def test_routes_that_a_table_cannot_name_are_refused() -> None:
    mounted, included, router = app_with("/health"), app_with("/health"), APIRouter()
    mounted.mount("/files", app_with("/secret"))
    router.get("/secret")(lambda: PlainTextResponse("ok"))
    included.include_router(router, prefix="/v1")
    for app in (mounted, included):
        with pytest.raises(RuntimeError, match=r"so no table of access can name it|nobody says who may call"):
            Admission(app, {"GET /health": None}, authenticate)
