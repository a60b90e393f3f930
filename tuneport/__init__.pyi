from pipelines.api import Run as Run
from pipelines.api import compile as compile
from pipelines.api import load as load
from pipelines.api import preview as preview
from pipelines.api import run as run
from pipelines.api import validate as validate
from tuneport.artifacts import Dataset as Dataset
from tuneport.artifacts import File as File
from tuneport.artifacts import MLflowModel as MLflowModel
from tuneport.artifacts import Model as Model
from tuneport.artifacts import Report as Report
from tuneport.errors import UserError as UserError
from tuneport.graph import Pipeline as Pipeline
from tuneport.graph import trace as trace
from tuneport.stage import execute as execute
from tuneport.step import Params as Params
from tuneport.step import Step as Step
from tuneport.step import View as View
from tuneport.step import consumes as consumes
from tuneport.step import param as param
from tuneport.step import produces as produces
from tuneport.step import resource as resource
from tuneport.targets.target import Target as Target
from tuneport.tasks.task import Task as Task

__version__: str
