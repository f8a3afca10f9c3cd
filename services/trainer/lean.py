"""Keep MLflow out of a process that imports DeepSpeed, whose autotuner imports it wherever it is installed.

That is a third of a rank's and of the launcher's start. Import this before `deepspeed`, or run one of DeepSpeed's
modules by it: `python -m services.trainer.lean deepspeed.launcher.launch …`.
"""

import runpy
import sys

sys.modules["mlflow"] = None  # type: ignore[assignment]

if __name__ == "__main__":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
