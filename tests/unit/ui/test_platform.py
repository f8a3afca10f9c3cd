"""What can be asked to generate."""

from anthesis.v1.registry_pb2 import Alias, Deployment

from ui.actions import deployment_name
from ui.platform import Servable, servable


def test_aliases_come_first_and_only_what_is_ready_is_offered():
    deployments = [
        Deployment(name="a", target="seedling", version="seedling@2", ready_replicas=1),
        Deployment(name="b", target="bare@1", version="bare@1", ready_replicas=2),
        Deployment(name="c", target="loading@1", version="loading@1"),
    ]
    aliases = [Alias(name="seedling", version="seedling@2"), Alias(name="old", version="loading@1")]
    assert servable(deployments, aliases) == [Servable("seedling", "seedling@2"), Servable("bare@1", "bare@1")]


def test_a_deployment_of_a_version_has_a_name_that_the_registry_takes():
    assert deployment_name("bigscience/bloom-560m@1") == "bigscience.bloom-560m.1"
