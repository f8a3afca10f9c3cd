"""Who may call which RPC and which route of the gateway. docs/access.md has the table of roles that follows from this.

Tokenizing and counting are no reads: they have the tokenizer compute.
"""

from collections.abc import Mapping

from services.common.access import Access, Permission

GENERATION: Access = {
    "Generate": Permission.GENERATE,
    "Tokenize": Permission.GENERATE,
    "Count": Permission.GENERATE,
    "Score": Permission.GENERATE,
    "Embed": Permission.GENERATE,
}

HTTP: Mapping[str, Permission | None] = {  # None: needs no key
    "GET /health": None,
    "GET /v1/models": Permission.READ,
    "GET /v1/models/{name:path}": Permission.READ,
    "POST /v1/completions": Permission.GENERATE,
    "POST /v1/embeddings": Permission.GENERATE,
    "POST /v1/files": Permission.TRAIN,
    "GET /v1/files": Permission.TRAIN,
    "GET /v1/files/{file_id}": Permission.TRAIN,
    "GET /v1/files/{file_id}/content": Permission.TRAIN,
    "DELETE /v1/files/{file_id}": Permission.TRAIN,
    "POST /v1/fine_tuning/jobs": Permission.TRAIN,
    "GET /v1/fine_tuning/jobs": Permission.TRAIN,
    "GET /v1/fine_tuning/jobs/{job_id}": Permission.TRAIN,
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": Permission.TRAIN,
    "GET /v1/fine_tuning/jobs/{job_id}/events": Permission.TRAIN,
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": Permission.TRAIN,
}
