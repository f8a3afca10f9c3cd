"""What a run computes in, and whether this machine can."""

import torch

from services.trainer.config import Precision
from services.trainer.failure import JobFailure

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def check_fp16() -> None:
    """Raises JobFailure where nothing has products of fp16: one would take hundreds of times as long as in fp32."""
    if not torch.cuda.is_available() and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        found = "precision=fp16: no GPU is here, and this processor has no products of fp16"
        raise JobFailure("BAD_PRECISION", f"{found}; use bf16 or fp32", "precision")
