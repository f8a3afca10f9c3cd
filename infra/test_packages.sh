#!/usr/bin/env bash
# What the tests use beyond .venv, where it can be had; tests that miss something say that they were left out.
#   make, for .ci/run, and g++, for bloom/cpu, where root and apt allow
#   Chromium (and fonts for many scripts): Debian's where root and apt allow, else Playwright's own
#   PostgreSQL: with --postgresql, where root and apt allow
set -uo pipefail
cd "$(dirname "$0")/.."
can_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
need=()
command -v make >/dev/null || need+=(make)
command -v g++ >/dev/null || need+=(g++)
command -v chromium >/dev/null || need+=(chromium fonts-noto-core fonts-noto-cjk)
if [ "${1:-}" = --postgresql ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then need+=(postgresql); fi
if [ ${#need[@]} -gt 0 ] && can_apt; then
  echo "Installing ${need[*]} ..."
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi
if ! command -v chromium >/dev/null && [ -x .venv/bin/playwright ]; then
  .venv/bin/playwright install chromium || echo "No Chromium can be had: the browser tests will be left out."
fi
exit 0
