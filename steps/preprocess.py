"""Validate, split and tokenise the user's rows: `python -m steps preprocess --help`; imports no torch."""

import dataclasses as dc
from collections.abc import Mapping

from tuneport import tasks
from tuneport.address import EXTRAS
from tuneport.artifacts import Dataset, File, MLTable, Tokenizer
from tuneport.data.column_map import ColumnMap, column_map
from tuneport.data.mltable import find_mltable
from tuneport.data.options import PrepareParams
from tuneport.data.readers import MissingColumns, Source, find
from tuneport.errors import UserError
from tuneport.parameters import COMPUTE, INSTANCE_TYPE
from tuneport.step import Step, View, consumes, produces, resource

SPLITS = ("train", "validation", "test")
SMALL_BATCH = 513  # rows; a smaller one is worth a word


class Preprocess(Step, tasks.TaskParams, PrepareParams):
    """Validate, split and tokenise the rows to fine-tune on."""

    image = "base"

    model_selector_output: Tokenizer = consumes("Imported base model, or its tokenizer_folder; no weights are read.")
    train_file_path: File | None = consumes(
        "Training data: jsonl, json, csv, tsv or parquet; a file, a glob or a folder; a path, or an address with "
        "s3://, gs://, abfs://, abfss://, az://, https:// or hf://."
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
        self.column_map()
        if none := [s for s in SPLITS if self._most(s) == 0]:
            raise UserError(f"max_{none[0]}_rows=0: reads nothing; expected at least 1, or -1 for all rows.")
        if idle := [s for s in SPLITS if s not in given and self._most(s) is not None]:
            raise UserError(
                f"max_{idle[0]}_rows={getattr(self, f'max_{idle[0]}_rows')}: has no effect without "
                f"{idle[0]}_file_path or {idle[0]}_mltable_path. Leave it out."
            )
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

    def check_rows(self) -> list[str]:
        from tuneport.data.row_checks import check_rows

        found = check_rows(tasks.load(self.task_name), self, self.sources(), self.wanted_columns())
        if self.batch_size < SMALL_BATCH:  # others call so what training takes at once
            found.append(
                f"batch_size={self.batch_size}: is how many rows the tokenizer takes at once. Those of a training step "
                "are per_device_train_batch_size."
            )
        return found

    def run(self) -> None:
        from tuneport.data.prepare import prepare

        for split in SPLITS:
            if getattr(self, f"{split}_file_path") and getattr(self, f"{split}_mltable_path"):
                self.log.warning("%s_mltable_path is used; %s_file_path is ignored as both are given", split, split)
        task, output = tasks.load(self.task_name), self.preprocess_output.path
        sources = self.sources()
        self._read = sources
        prepare(
            task,
            self,
            sources=sources,
            wanted=self.wanted_columns(),
            model=self.model_selector_output.path,
            output=output,
        )

    def repeatable(self) -> bool:
        return not self._elsewhere()

    def origins(self) -> Mapping[str, str]:
        """What stands for the bytes of the data that lies elsewhere: of what was read, else of what is there now."""
        given = self._elsewhere()
        if not given:
            return {}
        sources: Mapping[str, Source] = getattr(self, "_read", None) or self.sources()
        return {given[split]: identity for split in given if (identity := sources[split].identity)}

    def _elsewhere(self) -> dict[str, str]:
        """By split, the input that names data that does not lie on this machine."""
        used = {s: f"{s}_mltable_path" if getattr(self, f"{s}_mltable_path") else f"{s}_file_path" for s in SPLITS}
        return {s: name for s, name in used.items() if (v := getattr(self, name)) and v.address.scheme in EXTRAS}

    def sources(self) -> dict[str, Source]:
        """The given data by split.

        Raises `UserError` where an input names none.
        """
        map = self.column_map()
        return {
            split: dc.replace(source, map=map, max_rows=self._most(split))
            for split in SPLITS
            if (source := self._source(split))
        }

    def _most(self, split: str) -> int | None:
        """How many rows of a split are read; None: all."""
        asked: int = getattr(self, f"max_{split}_rows")
        return None if asked == -1 else asked

    def column_map(self) -> ColumnMap:
        """Where the data has the columns that the task asks for. Raises `UserError`."""
        task = tasks.load(self.task_name)
        group = {"group": self.group_key} if self.group_key is not None else {}
        return column_map(self.columns, task.columns(self) | group, task.optional_columns(self))

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
            return find_mltable(table.address, mltable, self.quoting, self.limits())
        if data := getattr(self, file):
            return find(data.address, file, self.quoting, self.limits())
        return None
