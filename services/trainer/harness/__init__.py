"""Jobs that put the tasks of lm-evaluation-harness to a version that the gateway serves."""
