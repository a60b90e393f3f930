"""Of `helm test`: whether MLflow keeps what is logged, in its database and its artifact store."""

import os
import sys

import mlflow

print("MLflow at", os.environ["MLFLOW_TRACKING_URI"])
mlflow.set_experiment("helm-test")
with mlflow.start_run() as run:
    mlflow.log_param("parameter", "kept")
    mlflow.log_metric("metric", 0.5)
    mlflow.log_text("kept", "artifact.txt")
client = mlflow.MlflowClient()
data = client.get_run(run.info.run_id).data
artifact = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/artifact.txt")
if (data.params, data.metrics, artifact) != ({"parameter": "kept"}, {"metric": 0.5}, "kept"):
    sys.exit(f"read back: {data.params}, {data.metrics}, {artifact!r}; another was written")
client.delete_run(run.info.run_id)
print("parameters, metrics and artifacts are kept")
