"""vLLM's CPU build, its offline `LLM` class in this process. Runs in the environment `venv-vllm`."""

import os

from benchmarks.protocol import Loaded, Prompts, Task, contend

CACHE_GIB = 2


def load(task: Task) -> Loaded:
    """`task.weights`: bfloat16 or float32. vLLM binds its own threads to the cores it finds."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": str(CACHE_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    import torch
    import vllm  # type: ignore[import-not-found, unused-ignore]

    model = vllm.LLM(
        model=task.model,
        skip_tokenizer_init=True,
        dtype=task.weights,
        max_model_len=1024,
        max_num_seqs=max(task.batches, default=1),
        max_num_batched_tokens=4096,
        enable_prefix_caching=False,  # the prompts of two runs are the same
        disable_log_stats=True,
    )

    def generate(given: Prompts, count: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        requests = [{"prompt_token_ids": prompt} for prompt in given]
        return [list(one.outputs[0].token_ids) for one in model.generate(requests, sampling, use_tqdm=False)]

    facts = {"torch_threads": torch.get_num_threads()}
    version = f"vllm {vllm.__version__}, torch {torch.__version__}"
    return Loaded(generate=generate, version=version, cache_bytes=CACHE_GIB << 30, facts=facts)


if __name__ == "__main__":
    contend(load)
