"""`anthesis status`."""

from collections.abc import Sequence

import typer

from anthesis import Client
from anthesis.cli.output import Json, enum_name, print_json, print_table
from anthesis.v1.inference_pb2 import GetWorkerStatusResponse, LoadedModel, ModelLoadState
from anthesis.v1.registry_pb2 import Deployment


def register(app: typer.Typer) -> None:
    app.command()(status)


def status(as_json: Json = False) -> None:
    """Health of every service, what the worker has loaded, deployments. Exit code 1 when a service is away."""
    with Client() as client:
        health = client.health()
        worker = client.worker_status() if health["inference"] == "SERVING" else GetWorkerStatusResponse()
        deployments = client.deployments.list() if health["registry"] == "SERVING" else []
        services = {
            name: {"address": getattr(client.settings, f"{name}_address"), "status": answer}
            for name, answer in health.items()
        }
    if as_json:
        print_json({"services": services, "worker": worker, "deployments": deployments})
    else:
        rows = [(name, service["address"], service["status"]) for name, service in services.items()]
        print_table(("SERVICE", "ADDRESS", "STATUS"), rows)
        print()
        print_table(("LOADED", "STATE", "RUNNING", "WAITING", "FREE KV BLOCKS"), map(_loaded, worker.models))
        print()
        print_table(("DEPLOYMENT", "TARGET", "VERSION", "READY", "ERRORS"), map(_deployment, deployments))
    if any(answer != "SERVING" for answer in health.values()):
        raise typer.Exit(1)


def _loaded(model: LoadedModel) -> Sequence[object]:
    state = model.error or enum_name(ModelLoadState, model.state)
    blocks = f"{model.num_free_kv_blocks}/{model.num_kv_blocks}"
    return model.model_version, state, model.num_running, model.num_waiting, blocks


def _deployment(item: Deployment) -> Sequence[object]:
    ready = f"{item.ready_replicas}/{item.replicas or 'all'}"
    still = f" (until ready: {item.serving_version})" if item.serving_version not in ("", item.version) else ""
    return item.name, item.target, (item.version or "-") + still, ready, "; ".join(item.errors) or "-"
