"""Hugging Face transformers: `generate` of BloomForCausalLM. Runs in the environment `venv`."""

from typing import Any

from benchmarks.protocol import Loaded, Prompts, Task, contend

PAD_ID = 3


def load(task: Task) -> Loaded:
    """`task.weights`: bfloat16 or float32."""
    import torch
    import transformers

    torch.set_num_threads(task.threads)
    dtype = getattr(torch, task.weights)
    model: Any = transformers.BloomForCausalLM.from_pretrained(task.model, dtype=dtype)
    model.eval()
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def generate(given: Prompts, count: int) -> list[list[int]]:
        ids = torch.tensor(given)
        outputs = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            use_cache=True,
            pad_token_id=PAD_ID,
        )
        new_ids: list[list[int]] = outputs[:, ids.shape[1] :].tolist()
        return new_ids

    return Loaded(generate=generate, version=f"transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    contend(load)
