"""Optional packages: each is imported where it is needed,
and the error for a missing one names the extra to install."""

import importlib

from index.base.errors import RequestError

EXTRA_OF = {
    "fastapi": "serve",
    "kubernetes": "kubernetes",
    "mlflow": "mlflow",
    "nvidia.dali": "dali",
    "obstore": "object-storage",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "optuna": "optuna",
    "peft": "lora",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}
"""Optional packages by import name, and the extra of fsl-dist that installs each."""


def require(package: str) -> None:
    """Import an optional package; raises RequestError if it cannot be imported."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f", and importing it failed ({error})"
        raise RequestError(
            f"this needs {package}{reason}: pip install 'fsl-dist[{EXTRA_OF[package]}]'"
        ) from error
