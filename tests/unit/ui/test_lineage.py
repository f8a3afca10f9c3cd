"""A version's ancestry as Graphviz."""

from anthesis.v1.registry_pb2 import ModelVersion

from ui.lineage import dot


def test_edges_lead_from_ancestors_and_datasets_to_the_version():
    base = ModelVersion(name="seedling@1", datasets=["udhr"], job_id="job-1")
    tuned = ModelVersion(name="seedling-z@1", parent="seedling@1", datasets=["tasks"], job_id="job-2")
    graph = dot(tuned, [base])
    assert '"seedling@1" -> "seedling-z@1"' in graph
    assert '"dataset tasks" -> "seedling-z@1"' in graph
    assert '"dataset udhr" -> "seedling@1" [label="job-1"]' in graph


def test_names_cannot_leave_their_quotes():
    graph = dot(ModelVersion(name='a"]; evil [label="\\'), [])
    assert r'"a\"]; evil [label=\"\\"' in graph
