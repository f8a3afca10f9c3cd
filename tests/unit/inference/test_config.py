import pytest

from services.inference.config import EngineConfig, WorkerConfig


def test_the_environment_sets_the_engine():
    env = {"ANTHESIS_INFERENCE_DTYPE": "float32", "ANTHESIS_INFERENCE_THREADS": "3"}
    env["ANTHESIS_INFERENCE_WEIGHTS"] = "int8_dynamic"
    config = WorkerConfig.from_env(env)
    assert config.engine.dtype == "float32"
    assert config.engine.threads == 3
    assert config.engine.weights == "int8_dynamic"


def test_what_is_no_number_is_refused_with_the_variable():
    with pytest.raises(ValueError, match="ANTHESIS_INFERENCE_THREADS='many'"):
        WorkerConfig.from_env({"ANTHESIS_INFERENCE_THREADS": "many"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("dtype", "int3"),
        ("kv_dtype", "int3"),
        ("threads", 0),
        ("tensor_parallel", 0),
        ("alibi_tolerance", 1.0),
        ("ranks_address", "node-0"),
        ("kv_memory_fraction", 1.5),
        ("max_batched_tokens", 8),
    ],
)
def test_a_setting_out_of_range_is_refused_with_name_and_value(name: str, value: object):
    with pytest.raises(ValueError, match=f"{name}={value!r} is out of range"):
        EngineConfig(**{name: value})


def test_a_worker_is_known_by_host_and_port_unless_it_has_a_name():
    assert WorkerConfig().identity(50052).endswith(":50052")
    assert WorkerConfig(worker_id="gpu-1").identity(50052) == "gpu-1"
