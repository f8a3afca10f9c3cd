"""The platform as the playground sees it: one client for all sessions, and what can be asked to generate."""

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st
from anthesis import AsyncClient, Client, Settings
from anthesis.v1.registry_pb2 import Alias, Deployment

from ui import streams


@dataclass(frozen=True, slots=True)
class Connection:
    client: Client
    streaming: AsyncClient  # for `streams.Stream` alone
    settings: Settings


@st.cache_resource(show_spinner=False)
def connect() -> Connection:
    """Raises UnauthenticatedError when there is no API key."""
    settings = Settings.from_env()
    return Connection(Client(settings), streams.open_client(settings), settings)


@dataclass(frozen=True, slots=True)
class Servable:
    """A name that the gateway answers to, and the version it stands for now."""

    name: str
    version: str

    @property
    def label(self) -> str:
        return self.name if self.name == self.version else f"{self.name}  ·  {self.version}"


def servable(deployments: Sequence[Deployment], aliases: Sequence[Alias]) -> list[Servable]:
    """What workers have ready: aliases first, then versions that have no alias."""
    ready = {d.version for d in deployments if d.ready_replicas}
    named = [Servable(a.name, a.version) for a in aliases if a.version in ready]
    plain = ready - {choice.version for choice in named}
    return sorted(named, key=lambda c: c.name) + [Servable(version, version) for version in sorted(plain)]
