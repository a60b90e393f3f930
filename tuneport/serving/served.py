"""The part of a served model's code that all tasks share: MLflow's payloads in, a table of answers out.

`tuneport.export.mlflow_model` copies the class below, as text, into each exported model. It is therefore
self-contained: what it needs is imported inside its methods, and nothing of tuneport is.
"""

from __future__ import annotations

import typing as t


class Served:
    """Answers tables whose columns bear the user's names.

    ``columns`` maps each field of the predictor to a column, ``kinds`` each column to the type it holds: a string, or
    with ``dense_union`` a string or a list of them; with ``extension`` the predictor checks it.
    """

    def __init__(
        self,
        predictor: type[t.Any],
        settings: dict[str, t.Any],
        columns: dict[str, str],
        kinds: dict[str, str],
        answers: list[str],
    ) -> None:
        self.predictor_class = predictor
        self.settings = settings
        self.columns = columns
        self.kinds = kinds
        self.answers = answers

    def load_context(self, context: t.Any) -> None:
        self.predictor = self.predictor_class(context.artifacts["model"], self.settings)

    # MLflow takes annotations of `predict` for the schema of the input; the signature says more than they can.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answer a DataFrame: MLflow has made one of whatever was sent, and held it against the signature.

        ``params``: batch_size, and those of the settings.
        """
        import pandas as pd

        params = dict(params or {})
        if (size := params.get("batch_size")) is not None and size < 1:
            self._refuse(f"params: batch_size={size} is not valid; expected a number > 0")
        try:
            answers = self.predictor(self._rows(model_input), **params)
        except ValueError as e:
            self._refuse(str(e))
        return pd.DataFrame(answers, columns=self.answers)

    def _rows(self, table: t.Any) -> list[dict[str, t.Any]]:
        import numpy as np
        import pandas as pd

        absent = [column for column in self.columns.values() if column not in table]  # MLflow lets optional ones be so
        table = table.assign(**{column: pd.Series([None] * len(table), dtype=object) for column in absent})
        table = table.map(lambda value: value.tolist() if isinstance(value, np.ndarray) else value)
        texts = [column for column, kind in self.kinds.items() if kind == "string"]
        # Of a dict of lists MLflow makes one row that holds the lists.
        lists = [column for column in texts if len(table) and isinstance(table[column].iloc[0], list)]
        lists += [column for column in self._nested() if len(table) and self._is_nested(table[column].iloc[0])]
        counts = {column: len(table[column].iloc[0]) for column in lists}
        if len(set(counts.values())) > 1:
            self._refuse(
                f"{', '.join(f'{n} values of {column!r}' for column, n in counts.items())}; expected one of each for "
                "each row. Send the rows as dataframe_records"
            )
        table = table.explode(lists, ignore_index=True) if lists else table
        for column in texts:
            for number, value in enumerate(table[column]):
                if not isinstance(value, str):
                    self._refuse(f"row {number + 1}: column '{column}' holds {value!r}; expected text")
        values = {field: table[column].tolist() for field, column in self.columns.items()}
        for field, column in self.columns.items():
            if self.kinds[column] == "dense_union":
                values[field] = [self._texts(value, column, i) for i, value in enumerate(values[field])]
        return [{field: values[field][i] for field in values} for i in range(len(table))]

    def _nested(self) -> list[str]:
        return [column for column, kind in self.kinds.items() if kind in ("extension", "list")]

    def _is_nested(self, value: t.Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(v, (list, str)) for v in value)

    def _texts(self, value: t.Any, column: str, number: int) -> t.Any:
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)):
            return value
        return self._refuse(f"row {number + 1}: column '{column}' holds {value!r}; expected text or a list of text")

    def _refuse(self, message: str) -> t.NoReturn:
        from mlflow.exceptions import MlflowException

        raise MlflowException.invalid_parameter_value(message)
