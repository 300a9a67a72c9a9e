"""Evaluate an encoder by a protocol, as a Ray job; SOURCE and DIR lie where every node sees them.

    ray job submit --address http://HEAD:8265 --working-dir . -- \
        python jobs/evaluate.py SOURCE --protocol voc07_svm data.name=voc2007 data.root=DIR cluster.workers=4

Results go to the run's folder; MLFLOW_TRACKING_URI names the MLflow server. A job joins the cluster that it was
submitted to.
"""

import sys

from rayssl.cli import run

if __name__ == "__main__":
    run(["evaluate", *sys.argv[1:]])
