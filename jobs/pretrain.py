"""Pre-train by a recipe, as a Ray job, where DIR is a folder of pictures that every node sees.

    ray job submit --address http://HEAD:8265 --working-dir . -- \\
        python jobs/pretrain.py psl-rotation-small data.root=DIR

Runs, checkpoints and reports go to `storage_path`, which every node must see, as DIR; MLFLOW_TRACKING_URI names the
MLflow server.
"""

import sys

from rayssl.config import load_config
from rayssl.launch import mlflow_command, pretrain
from rayssl.progress import Display, print_report

if __name__ == "__main__":
    config = load_config(sys.argv[1], sys.argv[2:])
    with Display() as display:
        report = pretrain(config, show=display.show)
    print_report(report, console=display.console)
    print(f"{report.folder}\n{mlflow_command(config.storage_path)}")
