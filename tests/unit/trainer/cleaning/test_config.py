from pathlib import Path

import pytest

from services.trainer.cleaning.config import CleaningConfig
from services.trainer.cleaning.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "spark"}, r"executor='spark' is not known; choose local, slurm, ray"),
        ({"licences": "gpl"}, r"licences='gpl' is not known"),
        ({"pii": ["EMAIL", "NAME"]}, r"pii: NAME is not known; choose among EMAIL"),
        ({"default_language": "de"}, r"default_language='de' is not one of ROOTS'"),
        ({"min_line_repeats": 1}, r"min_line_repeats=1 is too small; 2 is the least"),
        ({"thresholds": 3}, r"thresholds is no setting; there are default_language, "),
    ],
)
def test_a_setting_that_cannot_work_is_refused_with_its_value_and_the_remedy(settings, message: str):
    with pytest.raises(ConfigError, match=message):
        CleaningConfig.read(None, {"input": "in", "output": "out", **settings})


def test_input_and_output_must_be_set():
    with pytest.raises(ConfigError, match="output must be set"):
        CleaningConfig.read(None, {"input": "in"})


def test_flags_override_the_file(tmp_path: Path):
    path = tmp_path / "clean.yaml"
    path.write_text("input: a\noutput: b\nexamples: 5\npii: [KEY]\n")
    config = CleaningConfig.read(path, {"output": "c"})
    assert (config.input, config.output, config.examples, config.pii) == ("a", "c", 5, ("KEY",))


def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path):
    path = tmp_path / "clean.yaml"
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="holds no settings"):
        CleaningConfig.read(path, {})


def test_nothing_to_read_is_refused_and_tasks_are_no_more_than_files(tmp_path: Path):
    config = CleaningConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), tasks=9)
    with pytest.raises(ConfigError, match="holds no file"):
        config.resolved()
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.txt").write_text("x")
    resolved = config.resolved()
    assert resolved.tasks == 2
    assert resolved.workers >= 1
