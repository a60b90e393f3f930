"""Stage `finetune`: train the imported model on the prepared splits and hand back the best checkpoint."""

import dataclasses as dc
from functools import partial
from typing import ClassVar

from tuneport import __version__, tasks
from tuneport.artifacts import INCOMPLETE, Dataset, Model, Tokenizer, digest, digest_without, read_manifest
from tuneport.errors import UserError
from tuneport.links import link_tree
from tuneport.modeling.merged_adapters import ADAPTER_FILES, is_adapter
from tuneport.parameters import COMPUTE, INSTANCE_TYPE
from tuneport.serving.adapter_sum import LoraAdapter
from tuneport.stage import changed, parameters, save_json
from tuneport.step import Least, Step, View, consumes, produces, resource
from tuneport.tasks import TaskParams
from tuneport.training import conflicts, trackers
from tuneport.training.parameters import TrainingParams


class Finetune(Step, TaskParams, TrainingParams):
    """Fine-tune a pretrained model on a prepared dataset."""

    image = "trainer"
    addressable = True
    keeps_on_failure = ("checkpoints", "logs")
    resume_with: ClassVar = {"resume_from_checkpoint": "true"}

    model_selector_output: Model = consumes("Imported base model.")
    preprocess_output: Dataset = consumes("Tokenised splits.")
    pytorch_model_folder: Model = produces(
        "Best model; in checkpoints/ the checkpoint of every evaluation, in logs/ what report_to writes.",
        views={"training_metrics": View("metrics", "training.json")},
    )
    tuned_model: Model = produces(
        "Best model alone, as later stages read it: the same files, linked where they can be. Adapters that are not "
        "merged have their base model beside them.",
        optional=True,
    )
    compute_finetune: str = resource("compute", COMPUTE.format("finetune"), default="serverless")
    instance_type_finetune: str = resource(
        "instance_type", INSTANCE_TYPE.format("finetune"), default="Standard_nc24rs_v3"
    )
    shm_size_finetune: str = resource(
        "shm_size", "Size of /dev/shm, through which processes of one machine exchange data, as in 5g.", default="5g"
    )

    def check(self) -> None:
        if self.max_steps == 0:
            raise UserError("max_steps=0: trains nothing; expected -1 (as many as the epochs take) or a number > 0.")
        if self.save_total_limit == 0:
            raise UserError("save_total_limit=0: keeps no checkpoint; expected -1 (all) or a number > 0.")
        if self.eval_accumulation_steps == 0:
            raise UserError("eval_accumulation_steps=0: not valid; expected -1 (once, at the end) or a number > 0.")
        trackers.chosen(self.report_to)
        conflicts.check(self)
        tasks.load(self.task_name).check_options(self)

    def check_here(self) -> None:
        trackers.check_packages(self.report_to)

    def check_files(self) -> None:
        tasks.load(self.task_name).check_options(self, files=True)
        if self.resume_from_checkpoint != "false":
            from tuneport.training.checkpoint import resume

            resume.check(self.resume_from_checkpoint)
        if self.apply_deepspeed:
            from tuneport.training.distributed import deepspeed

            deepspeed.check(self)

    def least(self, model: int) -> Least:
        """Weights alone with LoRA; else with gradients and two moments, which sharded processes share among them."""
        whole = model if self.apply_lora else 4 * model
        shares = self.number_of_gpu_to_use_finetuning * self.num_nodes_finetune
        checkpoint = model if self.apply_lora or self.checkpoint_contents == "weights" else 3 * model
        sharded = self.apply_deepspeed or self.fsdp not in ("", "none")
        return Least(memory=whole // (shares if sharded else 1), disk=checkpoint)

    def needs_all_machines(self) -> str:
        """Of a checkpoint that is in parts, each process reads its own."""
        return "apply_deepspeed=true" if self.apply_deepspeed else f"fsdp={self.fsdp}" if self.fsdp else ""

    def needs_network(self) -> bool:
        return super().needs_network() or trackers.WANDB in trackers.chosen(self.report_to)

    def resumes(self) -> bool:
        return self.resume_from_checkpoint.lower() != "false"

    def repeatable(self) -> bool:
        return False  # a GPU's sums differ from run to run, and a resume starts from what the output holds

    def processes(self) -> int | None:
        return self.number_of_gpu_to_use_finetuning if self.is_distributed() else None

    def run(self) -> None:
        from tuneport.data.prepared import Prepared
        from tuneport.licences import carry_notices
        from tuneport.model_source.model_name import model_name
        from tuneport.tracking import Split, save_run, tracked
        from tuneport.training.model_card import write_model_card
        from tuneport.training.train import train

        prepared = Prepared(self.preprocess_output.path)
        prepared.check_task(self.task_name)
        self._check_lineage()
        output = self.pytorch_model_folder.path
        imported, preprocessed = (
            read_manifest(artifact)["parameters"] for artifact in (self.model_selector_output, self.preprocess_output)
        )
        name, data = model_name(self.model_selector_output.path, imported), prepared.source("train")
        data_digest = digest(self.preprocess_output)
        tags = {"task": self.task_name, "base_model": name, "data_digest": data_digest, "tuneport_version": __version__}
        title = f"{name} on {data}"
        with tracked(self.context, title, tags=tags) as run:
            if self.context.rank == 0:
                save_run(output, run.run_id, self.context)
            run.log_params(imported | preprocessed | parameters(self))
            run.log_splits(
                [
                    Split(
                        name=split, role=split, source=prepared.source(split), digest=prepared.digest(split), rows=rows
                    )
                    for split, rows in prepared.info.splits.items()
                    if rows
                ]
            )
            metric: str = vars(self)["metric_for_best_model"]  # each task has its own choices
            task = tasks.load(self.task_name)
            base = self.model_selector_output.path
            result = train(
                task,
                base,
                prepared,
                self,
                metric_for_best_model=metric,
                output=output,
                plain=self.tuned_model.path if self.tuned_model else None,
                run=run,
                run_name=title,
                inputs={"preprocess_output": data_digest},  # the rows name their model
                world_size=self.context.world_size,
                checkpoint_store=self.context.checkpoint_store,
            )
        if self.context.rank == 0:
            save_json(output / "training.json", dc.asdict(result))
            carry_notices(base, output)
            describe = partial(
                write_model_card,
                task=task,
                base=name,
                on_hub=bool(imported.get("huggingface_id")),
                data=data,
                splits=prepared.info.splits,
                meta=prepared.info.meta,
                parameters=changed(self),
                version=__version__,
            )
            describe(output)
            if self.tuned_model is not None:
                alone = self.tuned_model.path
                there = [path.name for path in alone.iterdir()]
                was_merged = is_adapter(output) and LoraAdapter.BASE not in there
                left_out = [INCOMPLETE, *self.keeps_on_failure, *there, *(ADAPTER_FILES if was_merged else ())]
                link_tree(output, alone, left_out)
                if was_merged:  # the card of the other is of adapters
                    (alone / "README.md").unlink()
                    describe(alone)
        self.log.info(
            "best %s %.4f at step %d of %d: %s",
            result.metric_for_best_model,
            result.best_metric,
            result.best_step,
            result.steps,
            result.best_checkpoint,
        )

    def _check_lineage(self) -> None:
        """Refuse rows that were tokenised for another model."""
        tokenised_for = read_manifest(self.preprocess_output)["inputs"].get("model_selector_output")
        base = self.model_selector_output
        if tokenised_for not in (digest(base), digest_without(base, Tokenizer)):
            raise UserError(
                f"{self.preprocess_output.path}: was tokenised for another model than "
                f"{self.model_selector_output.path}. Run preprocess with this model, or pass the right one."
            )
