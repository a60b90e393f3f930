"""What other programs call our parameters: the name, or the value, that a user most likely means."""

from __future__ import annotations

from collections.abc import Collection

from tuneport.errors import did_you_mean

# transformers' arguments, axolotl's and LLaMA-Factory's keys, and what people say; the first that there is counts
SYNONYMS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "max_lr", "peak_lr"),
    "num_train_epochs": ("epochs", "num_epochs", "n_epochs", "epoch", "max_epochs"),
    "per_device_train_batch_size": ("train_batch_size", "micro_batch_size", "bs", "batchsize"),
    "per_device_eval_batch_size": ("eval_batch_size", "per_gpu_eval_batch_size", "test_batch_size"),
    "gradient_accumulation_steps": ("grad_accum", "accumulation_steps", "gradient_accumulation"),
    "max_seq_length": ("max_length", "max_len", "seq_length", "seq_len", "sequence_len", "cutoff_len"),
    "pytorch_model_path": ("model", "base_model", "model_path", "model_name_or_path", "pretrained_model"),
    "huggingface_id": ("model_name", "model_id", "hf_model", "hub_id", "hf_id"),
    "train_file_path": ("data", "dataset", "train_file", "train_data", "training_file", "train", "data_path"),
    "validation_file_path": ("validation_file", "val_file", "eval_file", "dev_file", "validation", "val_data"),
    "test_file_path": ("test_file", "test_data", "test"),
    "validation_split_ratio": ("val_set_size", "val_size", "validation_split", "eval_split", "val_ratio"),
    "test_split_ratio": ("test_size", "test_ratio", "test_split"),
    "optim": ("optimizer",),
    "lr_scheduler_type": ("lr_scheduler", "scheduler", "schedule"),
    "warmup_steps": ("warmup", "num_warmup_steps"),
    "max_grad_norm": ("clip", "grad_clip", "gradient_clip", "gradient_clipping"),
    "evaluation_strategy": ("eval_strategy",),
    "apply_early_stopping": ("early_stopping", "early_stop"),
    "early_stopping_patience": ("patience",),
    "apply_lora": ("lora", "use_lora", "use_peft", "peft", "adapter"),
    "lora_r": ("r", "lora_rank", "rank"),
    "lora_alpha": ("alpha",),
    "lora_target_modules": ("target_modules", "lora_targets"),
    "apply_deepspeed": ("use_deepspeed",),
    "packing": ("sample_packing", "pack"),
    "number_of_gpu_to_use_finetuning": ("gpus", "n_gpu", "num_gpus", "nproc_per_node", "ngpu"),
    "num_nodes_finetune": ("nodes", "num_nodes", "nnodes"),
    "seed": ("random_seed", "random_state"),
    "resume_from_checkpoint": ("resume",),
    "registered_model_name": ("register", "registered_name"),
    "hub_model_id": ("push_to_hub", "push_to_hub_model_id", "hub_repo"),
    "max_new_tokens": ("max_tokens", "max_generation_length"),
    "num_beams": ("beams", "beam_size"),
    "sentence1_key": ("text_column", "text_col", "text_key", "sentence_key", "text"),
    "text_key": ("text_column", "text_col", "prompt_key", "prompt"),
    "ground_truth_key": ("completion_key", "response_key", "completion"),
    "label_key": ("label_column", "label_col", "target_column", "label", "labels"),
    "token_key": ("tokens", "words", "text_column"),
    "tag_key": ("tags", "ner_tags", "label_column", "label_key"),
    "document_key": ("text_column", "document", "article"),
    "summary_key": ("summary_column", "summary"),
    "context_key": ("context", "context_column"),
    "question_key": ("question", "question_column"),
    "answers_key": ("answers", "answer_column", "answer_key"),
}  # fmt: skip
VALUES: dict[str, str] = {
    "fp32": "precision=32", "float32": "precision=32", "fp16": "precision=fp16", "half": "precision=fp16",
    "float16": "precision=fp16", "bf16": "precision=bf16", "bfloat16": "precision=bf16", "tf32": "precision=tf32",
    "mixed_precision": "precision=16", "dtype": "precision=bf16",
    "load_in_4bit": "quantization=4bit", "load_in_8bit": "quantization=8bit", "qlora": "quantization=4bit",
}  # fmt: skip
FLAGS = {"output_dir": "--output_dir DIR", "run_name": "--name NAME", "name": "--name NAME"}


def meant(name: str, known: Collection[str]) -> str:
    """Return ``" Did you mean 'learning_rate'?"`` for what others call a known name, or for the closest one."""
    folded = name.strip("-").casefold().replace("-", "_")
    for parameter, others in SYNONYMS.items():
        if parameter in known and folded in others:
            return f" Did you mean '{parameter}'?"
    value = VALUES.get(folded)
    if value and value.partition("=")[0] in known:
        return f" Did you mean '{value}'?"
    if folded in FLAGS and "train_file_path" in known:
        return f" Did you mean {FLAGS[folded]}?"
    return did_you_mean(name, known)
