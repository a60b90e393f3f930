"""The graph that every task shares."""

from collections.abc import Mapping

from steps.finetune import Finetune
from steps.model_benchmark import ModelBenchmark
from steps.model_evaluation import ModelEvaluation
from steps.model_export import ModelExport
from steps.model_import import ModelImport
from steps.model_registration import ModelRegistration
from steps.model_upload import ModelUpload
from steps.preprocess import Preprocess
from tuneport.artifacts import Artifact
from tuneport.tasks import load, with_task


def finetuning(task_name: str) -> Mapping[str, Artifact]:
    """Import a model, prepare data, fine-tune, export, evaluate against the base model, register, upload."""
    base = ModelImport()
    data = with_task(Preprocess, task_name)(model_selector_output=base.tokenizer_folder)
    tuned = with_task(Finetune, task_name)(
        model_selector_output=base.model_selector_output, preprocess_output=data.preprocess_output
    )
    exported = with_task(ModelExport, task_name)(
        pytorch_model_folder=tuned.tuned_model,
        preprocess_output=data.preprocess_output,
        model_selector_output=None,  # adapters are merged into the tuned model
    )
    evaluated = with_task(ModelEvaluation, task_name)(
        model_selector_output=base.model_selector_output,
        pytorch_model_folder=tuned.tuned_model,
        preprocess_output=data.preprocess_output,
    )
    if load(task_name).benchmarked != "no":
        with_task(ModelBenchmark, task_name)(
            model_selector_output=base.model_selector_output, pytorch_model_folder=tuned.tuned_model
        )
    ModelRegistration(mlflow_model_folder=exported.logged_model_folder, evaluation_result=evaluated.evaluation_result)
    ModelUpload(pytorch_model_folder=tuned.tuned_model)
    return {
        "pytorch_model_folder": tuned.pytorch_model_folder,
        "mlflow_model_folder": exported.mlflow_model_folder,
        "evaluation_result": evaluated.evaluation_result,
    }
