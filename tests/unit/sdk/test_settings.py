"""Where the client finds its key and the services."""

from pathlib import Path

import pytest
from anthesis.errors import UnauthenticatedError
from anthesis.settings import Settings


def write_key(data: Path, key: str) -> None:
    (data / "keys").mkdir(parents=True)
    (data / "keys" / "admin.key").write_text(key + "\n")


def test_the_environment_says_where_services_are() -> None:
    settings = Settings.from_env({"ANTHESIS_API_KEY": "k", "ANTHESIS_REGISTRY_ADDRESS": "r:1"})

    assert settings.registry_address == "r:1"
    assert settings.gateway_address == "127.0.0.1:50050"


def test_the_variable_goes_before_the_data_folder(tmp_path: Path) -> None:
    write_key(tmp_path, "from the folder")
    env = {"ANTHESIS_DATA": str(tmp_path)}

    assert Settings.from_env(env).api_key == "from the folder"
    assert Settings.from_env({**env, "ANTHESIS_API_KEY": "from the variable"}).api_key == "from the variable"


def test_the_nearest_data_folder_above_the_working_directory_is_found(tmp_path: Path) -> None:
    write_key(tmp_path / ".anthesis", "outer")
    write_key(tmp_path / "project" / ".anthesis", "inner")
    below = tmp_path / "project" / "a" / "b"
    below.mkdir(parents=True)

    assert Settings.from_env({}, cwd=below).api_key == "inner"
    assert Settings.from_env({}, cwd=tmp_path).api_key == "outer"


def test_a_missing_key_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UnauthenticatedError, match=f"KEY is not set and {tmp_path}/keys/admin.key does"):
        Settings.from_env({"ANTHESIS_DATA": str(tmp_path)})
    with pytest.raises(
        UnauthenticatedError, match=f"no {tmp_path}/.anthesis/keys/admin.key, nor one in a folder above"
    ):
        Settings.from_env({}, cwd=tmp_path)


def test_a_printed_setting_shows_no_key() -> None:
    assert "sesame" not in repr(Settings(api_key="sesame"))


@pytest.mark.parametrize("key", ["an_1\nan_2", "schlüssel", "a\x00b"])
def test_a_key_that_no_header_can_carry_is_refused_unshown(key: str) -> None:
    with pytest.raises(UnauthenticatedError, match=r"the API key has .* copy it again") as refused:
        Settings(api_key=key)
    assert key not in str(refused.value)
