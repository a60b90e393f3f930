"""FSDP is torch's and runs on CPUs, but accelerate offers it to processes with GPUs only.

`SITE`, as a process's sitecustomize.py, is the fake that makes accelerate, and our own check, take a process without a
GPU for one that has one. All else is real: FSDP, its processes, what it writes and what is read again.
"""

SITE = """
import dataclasses, importlib.abc, importlib.util, os, sys

def of_accelerate(state):
    def _prepare_backend(self, cpu=False, sagemaker_dp=False, backend=None):
        several = int(os.environ.get("LOCAL_RANK", -1)) != -1
        return ("gloo", state.DistributedType.MULTI_GPU) if several else (backend, state.DistributedType.NO)

    def set_device(self):
        import torch

        self.device = torch.device("cpu")

    state.PartialState._prepare_backend, state.PartialState.set_device = _prepare_backend, set_device

def of_our_check(machine):
    here = machine.here
    machine.here = lambda model=None: dataclasses.replace(here(model), gpus=2)

class FsdpFinder(importlib.abc.MetaPathFinder):
    changed = {"accelerate.state": of_accelerate, "tuneport.training.machine": of_our_check}

    def find_spec(self, name, path=None, target=None):
        if name not in self.changed:
            return None
        change = self.changed.pop(name)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (plain(module), change(module))
        return spec

if os.environ.get("LOCAL_RANK"):
    print("fake of GPUs: FSDP on CPUs", flush=True)
sys.meta_path.insert(0, FsdpFinder())
"""
