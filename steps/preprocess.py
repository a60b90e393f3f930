"""Validate, split and tokenise the user's rows: `python -m steps preprocess --help`; imports no torch."""

import dataclasses as dc
from collections.abc import Mapping, Sequence

from tuneport import tasks
from tuneport.address import EXTRAS
from tuneport.artifacts import Dataset, File, MLTable, Tokenizer
from tuneport.data.column_map import ColumnMap, column_map
from tuneport.data.mixtures import shared_out, told_apart
from tuneport.data.mltable import find_mltable
from tuneport.data.options import PrepareParams
from tuneport.data.readers import MissingColumns, Source, find
from tuneport.errors import UserError
from tuneport.mixture import parts
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
        "s3://, gs://, abfs://, abfss://, az://, https:// or hf://; or a list of several, each of which may be "
        '{"path": …, "weight": …, "max_rows": …, "columns": {…}}.',
        mixable=True,
    )
    validation_file_path: File | None = consumes(
        "Validation data; without any, rows are taken from the training data.", mixable=True
    )
    test_file_path: File | None = consumes(
        "Test data; without any, rows are taken from the training data.", mixable=True
    )
    train_mltable_path: MLTable | None = consumes(
        "Training data as an MLTable folder, or a list of several; wins over train_file_path.", mixable=True
    )
    validation_mltable_path: MLTable | None = consumes(
        "Validation data as an MLTable folder; wins over validation_file_path.", mixable=True
    )
    test_mltable_path: MLTable | None = consumes(
        "Test data as an MLTable folder; wins over test_file_path.", mixable=True
    )
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
        for name in map(self._input, given):
            for number, part in enumerate(parts(getattr(self, name).location), 1):
                self.column_map(part.columns, f"{name}[{number}].columns")
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
        wanted = self.wanted_columns()
        for split, sources in self.sources().items():
            for source in sources:
                try:
                    source.peek(wanted)
                except MissingColumns as e:
                    hint = tasks.load(self.task_name).hint(e.columns, self)
                    several = f" Each source of {self._input(split)} may have a map, `columns`, of its own."
                    raise UserError(f"{e}{hint}{several if len(sources) > 1 else ''}") from None

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
        sources: Mapping[str, Sequence[Source]] = getattr(self, "_read", None) or self.sources()
        return {
            name if len(sources[split]) == 1 else f"{name}[{number}]": source.identity
            for split, name in given.items()
            for number, source in enumerate(sources[split], 1)
            if source.identity
        }

    def _elsewhere(self) -> dict[str, str]:
        """By split, the input that names data that does not lie on this machine."""
        used = {split: self._input(split) for split in SPLITS}
        return {
            split: name
            for split, name in used.items()
            if (value := getattr(self, name)) and any(one.address.scheme in EXTRAS for one in value.each())
        }

    def _input(self, split: str) -> str:
        """The input that gives the data of a split."""
        return f"{split}_mltable_path" if getattr(self, f"{split}_mltable_path") else f"{split}_file_path"

    def sources(self) -> dict[str, tuple[Source, ...]]:
        """The given data by split, one source or those of a mixture.

        Raises `UserError` where an input names none.
        """
        return {split: self._sources(split) for split in SPLITS if getattr(self, self._input(split))}

    def _sources(self, split: str) -> tuple[Source, ...]:
        option = self._input(split)
        given = parts(getattr(self, option).location)
        limits = shared_out(self._most(split), [part.weight for part in given], f"max_{split}_rows")
        find_source = find_mltable if option.endswith("_mltable_path") else find
        found = [
            dc.replace(
                find_source(part.address, option, self.quoting, self.limits()),
                map=self.column_map(part.columns, f"{option}[{number}].columns"),
                max_rows=min((n for n in (limit, part.max_rows) if n is not None), default=None),
                weight=part.weight,
            )
            for number, (part, limit) in enumerate(zip(given, limits, strict=True), 1)
        ]
        return told_apart(found, option)

    def _most(self, split: str) -> int | None:
        """How many rows of a split are read; None: all."""
        asked: int = getattr(self, f"max_{split}_rows")
        return None if asked == -1 else asked

    def column_map(self, own: Mapping[str, str] | None = None, option: str = "columns") -> ColumnMap:
        """Where the data, or one source with a map of its ``own``, has the columns that are asked for.

        Raises `UserError`.
        """
        task = tasks.load(self.task_name)
        group = {"group": self.group_key} if self.group_key is not None else {}
        return column_map(
            self.columns, task.columns(self) | group, task.optional_columns(self), own, option if own else "columns"
        )

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
