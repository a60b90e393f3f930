"""What a fake of the Kubeflow Pipelines API takes for a request and an answer, from kfp-server-api's own models.

Every request must be one of an operation of its services, every body a model with no other fields and with the types it
declares, and so must every answer that a test gives.
"""

import inspect
import re
from datetime import datetime
from typing import Any

import kfp_server_api
from kfp_server_api import models

SERVICES = (
    kfp_server_api.ExperimentServiceApi,
    kfp_server_api.RunServiceApi,
    kfp_server_api.RecurringRunServiceApi,
    kfp_server_api.PipelineServiceApi,
    kfp_server_api.PipelineUploadServiceApi,
    kfp_server_api.HealthzServiceApi,
)


WHOLE_NUMBERS = {"max_concurrency", "interval_second"}  # int64, which JSON of protobuf takes as a number or as text


class NotOfTheApi(Exception):
    """A request that no operation describes."""


def operations() -> dict[tuple[str, str], tuple[str | None, str]]:
    """By method and path: the model of the body, and of the answer, as the client's own code says them."""
    found = {}
    for service in SERVICES:
        for name, function in inspect.getmembers(service, inspect.isfunction):
            if not name.endswith("_with_http_info"):
                continue
            source = inspect.getsource(function)
            path, method = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", source).groups()  # type: ignore[union-attr]
            answer = re.search(r"response_type='(\w+)'", source)
            body = re.search(r":type \w+: (V2beta1\w+)", source)
            found[method, path] = (body[1] if body else None, answer[1] if answer else "object")
    return found


OPERATIONS = operations()


def operation(method: str, path: str) -> tuple[str | None, str]:
    """The operation of a request. Raises `NotOfTheApi`."""
    for (known, template), models_of in OPERATIONS.items():
        if known == method and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path):
            return models_of
    raise NotOfTheApi(f"{method} {path}")


def check(value: Any, kind: str, place: str = "body") -> None:
    """Raise `NotOfTheApi` where a JSON value is none of this type."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        for i, item in enumerate(expect(value, list, place)):
            check(item, inner[1], f"{place}[{i}]")
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for name, item in expect(value, dict, place).items():
            check(item, inner[1], f"{place}.{name}")
    elif kind == "datetime":
        datetime.fromisoformat(expect(value, str, place).replace("Z", "+00:00"))
    elif kind in ("str", "int", "float", "bool"):
        expect(value, {"str": str, "int": int, "float": (int, float), "bool": bool}[kind], place)
    elif kind != "object":
        check_model(value, kind, place)


def check_model(value: Any, kind: str, place: str) -> None:
    """The same for a model: an enumeration, or an object with fields."""
    model = getattr(models, kind)
    if allowed := [v for k, v in vars(model).items() if k.isupper() and isinstance(v, str)]:
        if value not in allowed:
            raise NotOfTheApi(f"{place}: {value!r}; expected one of {allowed}")
        return
    names = {json_name: attribute for attribute, json_name in model.attribute_map.items()}
    for name, item in expect(value, dict, place).items():
        if name not in names:
            raise NotOfTheApi(f"{place}.{name}: no field of {kind}")
        if item is not None and not (name in WHOLE_NUMBERS and isinstance(item, int)):
            check(item, model.openapi_types[names[name]], f"{place}.{name}")


def expect(value: Any, kind: Any, place: str) -> Any:
    if not isinstance(value, kind):
        raise NotOfTheApi(f"{place}: {type(value).__name__}; expected {kind}")
    return value
