"""transformers' Trainer on BloomForCausalLM, in its own loop or over DeepSpeed's ZeRO-1."""

import os
import sys
import tempfile
from typing import Any

import torch
import transformers
from torch.utils.data import Dataset

from benchmarks.train.task import ALONE, BETAS, CLIP, LEARNING_RATE, SEED, WEIGHT_DECAY, Clock, Task


class Sequences(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, task: Task) -> None:
        # The model moves labels by one itself: the last of a sequence's tokens is no input of theirs either way.
        self._ids = torch.from_numpy(task.sequences()[:, :-1])

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._ids[index], "labels": self._ids[index]}


class Clocked(transformers.TrainerCallback):
    def __init__(self) -> None:
        self._clock = Clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._clock.step_done(float("nan"))


def arguments(task: Task, folder: str) -> transformers.TrainingArguments:
    zero = {
        "train_micro_batch_size_per_gpu": task.micro_batch,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": task.precision == "bf16"},
    }
    return transformers.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=task.micro_batch,
        max_steps=1 + task.steps,
        learning_rate=LEARNING_RATE,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP,
        bf16=task.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        deepspeed=zero if task.deepspeed else None,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=SEED,
    )


def main() -> None:
    task = Task.from_json(sys.argv[1])
    torch.set_num_threads(task.threads)
    if task.deepspeed:
        import deepspeed

        os.environ.update(ALONE)
        deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}  # or it is compiled, for a minute
    torch.manual_seed(SEED)
    model = transformers.BloomForCausalLM(transformers.BloomConfig(**task.config.to_hf()))
    with tempfile.TemporaryDirectory(prefix="an-") as folder:
        trainer = transformers.Trainer(
            model=model, args=arguments(task, folder), train_dataset=Sequences(task), callbacks=[Clocked()]
        )
        trainer.train()
    Clock.end(f"transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
