"""Every benchmark's command line is understood, and the contestants are those whose names are asked for."""

import importlib
from argparse import ArgumentParser

import pytest

from benchmarks.contestants import CONTESTANTS, choose
from benchmarks.protocol import Task

COMMANDS = {
    "serve": ["vllm", "anthesis", "--rounds", "5", "--batches", "1", "8", "32", "--new", "64"],
    "load": ["mixed", "--seconds", "300", "--weights", "int8"],
    "profile": ["--weights", "int8_dynamic", "--batch", "32", "--no-worker"],
    "batch_invariance": ["--weights", "int8", "--batches", "1", "8", "32"],
    "soak": ["--minutes", "30", "--clients", "24"],
    "seven_billion": ["--weights", "int8", "--batches", "1", "8"],
    "machine": ["--threads", "2"],
    "plan_memory": ["1x1x1", "1x1x2", "--precision", "fp32"],
    "tokenize": ["--mb", "64", "--rounds", "1", "--threads", "2", "--work", "/somewhere"],
    "transfers": ["--mb", "64", "--rounds", "1", "--work", "/somewhere"],
    "submissions": ["--databases", "sqlite", "--rate", "50", "--watchers", "100", "--mb", "64"],
    "train.layouts": ["1x1x2", "2x2x2", "--rounds", "3"],
    "train.__main__": ["anthesis", "--shapes", "32k", "--precision", "fp32", "--rounds", "3", "--steps", "4"],
    "peers.__main__": ["install", "--work", "/somewhere"],
}


def parser_of(command: str) -> ArgumentParser:
    return importlib.import_module(f"benchmarks.{command}").parser()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_its_arguments(command: str) -> None:
    parser_of(command).parse_args(COMMANDS[command])


@pytest.mark.parametrize("args", [["prefix"], ["openai", "--rounds", "3", "--weights", "bfloat16", "int8"]])
def test_load_has_three_kinds(args: list[str]) -> None:
    assert parser_of("load").parse_args(args).command == args[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser_of(command).parse_args(["--help"])
    assert ended.value.code == 0
    assert "usage: python -m benchmarks" in capsys.readouterr().out


def test_a_word_chooses_all_contestants_that_have_it_in_their_names() -> None:
    assert [one.name for one in choose(["llama"])] == ["llama.cpp f16", "llama.cpp bf16", "llama.cpp q8_0"]
    assert choose([]) == list(CONTESTANTS)


def test_a_word_in_no_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ValueError, match=r"'gguf'.*llama\.cpp q8_0"):
        choose(["gguf"])


def test_a_task_survives_its_way_to_another_process() -> None:
    task = Task(model="/m", weights="int8", batches=(1, 32), new_tokens=7)
    assert Task.from_json(task.to_json()) == task
