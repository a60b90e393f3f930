"""In a finished image: whether everything that its stages import is there: `python check_imports.py base|trainer`."""

import importlib
import importlib.util
import sys

import steps

LIBRARIES = {
    "base": "fastokens huggingface_hub ijson jinja2 mlflow pyarrow.parquet rensa sqlalchemy tokenizers",
    "trainer": "accelerate boto3 datasets deepspeed gguf kubernetes lm_eval matplotlib mlflow.pyfunc onnxruntime "
    "onnxscript pandas peft psycopg pyarrow.parquet rouge_score sacrebleu seqeval.metrics sklearn.metrics sqlalchemy "
    "tensorboard torchmetrics transformers wandb",
}

image = sys.argv[1]
for library in LIBRARIES[image].split():
    importlib.import_module(library)
for name in steps.names():
    steps.load(name)
if image == "base":
    assert importlib.util.find_spec("torch") is None, "torch has come in"
else:
    import torch
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    if not torch.version.cuda:
        ShareMemCommBuilder().load()  # compiled beforehand: there is no compiler here
print(f"{image}: all imports are there")
