"""rayssl: self-supervised pre-training, stage by stage, on Ray.

The public names are imported when they are first used, so that `import rayssl` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayssl.config import ExperimentConfig, load_config
    from rayssl.experiment import run_experiment
    from rayssl.report import Report

__version__ = "0.1.0"
__all__ = ["ExperimentConfig", "Report", "load_config", "run_experiment"]

_HOMES = {"ExperimentConfig": "config", "load_config": "config", "run_experiment": "experiment", "Report": "report"}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that has it."""
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(f"rayssl.{_HOMES[name]}"), name)
    try:
        return import_module(f"rayssl.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"rayssl.{name}":
            raise
        raise AttributeError(f"module 'rayssl' has no attribute '{name}'") from None
