"""Optional packages: each is asked for where it is needed, and a missing one is an error that names what installs it."""

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
"""optional packages, by import name, and the extra of fsl-dist that installs each"""


def require(package: str) -> None:
    """Import an optional package, so that the imports that follow succeed. RequestError where it cannot be imported."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) else f", and it does not load here ({error})"
        raise RequestError(
            f"this needs {package}{reason}: pip install 'fsl-dist[{EXTRA_OF[package]}]'"
        ) from error
