"""`python -m infra.local up | down | status | logs [SERVICE]`."""

import argparse
import sys

from infra.local import platform
from infra.local.config import LocalConfig


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="The platform on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("up", help="start everything and wait until it answers")
    starting.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    commands.add_parser("down", help="stop everything; the state stays")
    commands.add_parser("status", help="what runs and what answers")
    commands.add_parser("logs", help="follow the logs").add_argument("service", nargs="?")
    args = parser.parse_args()
    try:
        config = LocalConfig.from_env()
        match args.command:
            case "up":
                platform.up(config, timeout_s=args.timeout)
            case "down":
                platform.down(config)
            case "status":
                return 0 if platform.status(config) else 1
            case "logs":
                platform.logs(config, args.service)
    except (OSError, ValueError, platform.NotReady) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
