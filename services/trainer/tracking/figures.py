"""What is tracked of a step, under the names that all trackers share."""

from services.trainer.progress import Progress, ValidationLoss


def figures(step: Progress) -> dict[str, float]:
    return {
        "loss": step.loss,
        "learning_rate": step.learning_rate,
        "grad_norm": step.grad_norm,
        "tokens_per_second": step.tokens_per_second,
        "tokens_seen": step.tokens_seen,
        "samples_seen": step.samples_seen,
        "model_flops_per_second": step.model_flops_per_second,
        "hardware_flops_per_second": step.hardware_flops_per_second,
    } | {validation_name(loss): loss.bits_per_byte for loss in step.validation}


def validation_name(loss: ValidationLoss) -> str:
    """ "bits_per_byte/held-out/fr" """
    return f"bits_per_byte/{loss.dataset}/{loss.language or 'unknown'}"
