"""A run's figures in what people watch them with: TensorBoard always, W&B and MLflow where they are configured.

A process for each reads what rank 0 writes. What happens to it (a server that hangs, a full disk) happens to no rank
and to no lease; an attempt that goes on from a checkpoint goes on in the same run, named by the job's id.
"""
