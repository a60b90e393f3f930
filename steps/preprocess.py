"""Validate, split and tokenise the user's rows: `python -m steps preprocess --help`; imports no torch."""

from pathlib import Path

from tuneport import tasks
from tuneport.artifacts import Dataset, File, MLTable, Model
from tuneport.data.mltable import find_mltable
from tuneport.data.options import PrepareParams
from tuneport.data.readers import MissingColumns, Source, find
from tuneport.errors import UserError
from tuneport.parameters import COMPUTE, INSTANCE_TYPE
from tuneport.step import Step, View, consumes, produces, resource

SPLITS = ("train", "validation", "test")


class Preprocess(Step, tasks.TaskParams, PrepareParams):
    """Validate, split and tokenise the rows to fine-tune on."""

    image = "base"

    model_selector_output: Model = consumes("Imported base model.")
    train_file_path: File | None = consumes(
        "Training data: jsonl, json, csv, tsv or parquet; a file, a glob or a folder."
    )
    validation_file_path: File | None = consumes("Validation data; without any, rows are taken from the training data.")
    test_file_path: File | None = consumes("Test data; without any, rows are taken from the training data.")
    train_mltable_path: MLTable | None = consumes("Training data as an MLTable folder; wins over train_file_path.")
    validation_mltable_path: MLTable | None = consumes(
        "Validation data as an MLTable folder; wins over validation_file_path."
    )
    test_mltable_path: MLTable | None = consumes("Test data as an MLTable folder; wins over test_file_path.")
    preprocess_output: Dataset = produces(
        "Tokenised splits, their raw rows and the data report.",
        views={"data_report": View("markdown", "data_report.json")},
    )
    compute_preprocess: str = resource("compute", COMPUTE.format("preprocess"), default="serverless")
    instance_type_preprocess: str = resource(
        "instance_type", INSTANCE_TYPE.format("preprocess"), default="Standard_d12_v2"
    )

    def check(self) -> None:
        given = {n for n in SPLITS if getattr(self, f"{n}_file_path") or getattr(self, f"{n}_mltable_path")}
        if "train" not in given:
            raise UserError("no training data: expected train_file_path or train_mltable_path.")
        self.wanted_columns()
        taken = {"validation", "test"} - given
        if len(taken) == 2 and self.validation_split_ratio + self.test_split_ratio >= 1:
            raise UserError(
                f"validation_split_ratio={self.validation_split_ratio:g} and test_split_ratio="
                f"{self.test_split_ratio:g}: together leave no training rows; expected a sum below 1."
            )

    def check_files(self) -> None:
        """Find missing files and columns by a look at the first row of each source; raises `UserError`."""
        sources, wanted = self.sources(), self.wanted_columns()
        for source in sources.values():
            try:
                source.peek(wanted)
            except MissingColumns as e:
                raise UserError(f"{e}{tasks.load(self.task_name).hint(e.columns, self)}") from None

    def run(self) -> None:
        from tuneport.data.prepare import prepare

        for split in SPLITS:
            if getattr(self, f"{split}_file_path") and getattr(self, f"{split}_mltable_path"):
                self.log.warning("%s_mltable_path is used; %s_file_path is ignored as both are given", split, split)
        task, output = tasks.load(self.task_name), self.preprocess_output.path
        prepare(
            task,
            self,
            sources=self.sources(),
            wanted=self.wanted_columns(),
            model=self.model_selector_output.path,
            output=output,
        )

    def sources(self) -> dict[str, Source]:
        """The given data by split.

        Raises `UserError` where an input names none.
        """
        return {split: source for split in SPLITS if (source := self._source(split))}

    def wanted_columns(self) -> dict[str, str]:
        """The user's column by the option that names it."""
        task = tasks.load(self.task_name)
        named = [name for name in task.params[self.name()].ports() if name.endswith(("_key", "_lang"))]
        options = {getattr(self, name): name for name in named}
        found: dict[str, str] = {}
        for field, column in task.columns(self).items():
            option = f"{field}_key"
            found[option if option in self.ports() else options.get(column, field)] = column
        group = {"group_key": self.group_key} if self.group_key is not None else {}
        return found | group

    def _source(self, split: str) -> Source | None:
        file, mltable = f"{split}_file_path", f"{split}_mltable_path"
        if table := getattr(self, mltable):
            return find_mltable(Path(table.path), mltable)
        if data := getattr(self, file):
            return find(Path(data.path), file)
        return None
