"""A model to answer with, on the devices of this machine."""

from __future__ import annotations

import typing as t

from tuneport.serving.model_loader import ModelLoader
from tuneport.serving.placement import Machine


class DeviceLoader:
    """Loads a model of one of transformers' classes to answer with. Self-contained: exported with the predictors.

    It goes onto the first GPU where there is one, over all of them where one does not hold it (which needs accelerate),
    and is computed in the type that its weights are saved in; on a CPU see `Machine.weight_type`.
    """

    def __init__(self, architecture: str) -> None:
        self.architecture = architecture

    def __call__(self, folder: str) -> t.Any:
        import logging

        machine = Machine()
        kind = machine.weight_type(folder)
        placement = machine.place(machine.weight_bytes(folder, kind.itemsize))
        logging.getLogger("tuneport.serving").info("%s", placement.said())
        if placement.one_device:
            return ModelLoader(self.architecture)(folder, dtype=kind).to(placement.device)
        try:
            import accelerate  # noqa: F401
        except ImportError:
            raise ImportError(
                f"{placement.said()}: spreading a model takes accelerate. Install it (pip install accelerate), or "
                "take a GPU with more memory"
            ) from None
        return ModelLoader(self.architecture)(folder, dtype=kind, **placement.loading())
