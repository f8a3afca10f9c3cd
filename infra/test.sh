#!/usr/bin/env bash
# The suite, as two processes side by side: much of it waits for processes that it has started. What the first says is
# shown when both are done.
set -u
cd "$(dirname "$0")/.."
pytest=(.venv/bin/python -m pytest -m "not long and not gpu")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"${pytest[@]}" tests/unit tests/e2e > "$log" 2>&1 &
"${pytest[@]}" tests/distributed tests/integration
second=$?
wait $!
first=$?
cat "$log"
exit $((first || second))
