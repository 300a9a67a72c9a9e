"""Pre-train by a recipe, as a Ray job; DIR is a folder of pictures that every node sees.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/pretrain.py RECIPE data.root=DIR storage_path=/shared/runs

Runs, checkpoints and reports go to `storage_path`, which every node must see too; MLFLOW_TRACKING_URI names the
MLflow server. A job joins the cluster that it was submitted to.
"""

import sys

from rayssl.cli import run

if __name__ == "__main__":
    run(["pretrain", *sys.argv[1:]])
