"""A report on a dataset's rows, before anything is trained on them: docs/datasets.md says what is in it."""
