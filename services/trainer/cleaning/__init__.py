"""ROOTS' cleaning as a job on datatrove: from raw text to text that is worth training on, with a report of what went.

`python -m services.trainer.cleaning CONFIG.yaml` runs it; docs/cleaning.md says what each filter does and where its
thresholds were published.
"""
