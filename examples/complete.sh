#!/bin/sh
# A completion with curl: examples/complete.sh [MODEL] [PROMPT]; the prompt must need no JSON escapes.
set -eu
address=${ANTHESIS_GATEWAY_HTTP_ADDRESS:-127.0.0.1:8080}
key=${ANTHESIS_API_KEY:-$(cat "${ANTHESIS_DATA:-.anthesis}/keys/admin.key")}
curl --fail-with-body --silent --show-error "http://$address/v1/completions" \
    -H "authorization: Bearer $key" -H "content-type: application/json" \
    -d "{\"model\": \"${1:-seedling}\", \"prompt\": \"${2:-Everyone has the right to}\", \"max_tokens\": 64}"
