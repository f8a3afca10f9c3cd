"""Training steps beside Hugging Face's Trainer: `python -m benchmarks.train`."""
