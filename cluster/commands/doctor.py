"""The capabilities of this machine, found by testing each library and not only by its version."""

import importlib
import importlib.metadata
import os
import platform


def examine() -> dict[str, str | int | bool]:
    """Return versions, processors, GPUs, the decoder of `data.decoder=auto`, and the Ray that would be used."""
    findings: dict[str, str | int | bool] = {
        "fsl-dist": importlib.metadata.version("fsl-dist"),
        "python": platform.python_version(),
        "cpu_cores": os.cpu_count() or 1,
    }
    for name, module in (
        ("torch", "torch"),
        ("torchvision", "torchvision"),
        ("faiss", "faiss"),
        ("dali", "nvidia.dali"),
        ("ray", "ray"),
        ("webdataset", "webdataset"),
    ):
        findings[name] = _version(module)
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    findings["gpus"] = ", ".join(gpus) or "none"
    findings["decoder"] = "torchvision" if str(findings["dali"]).startswith("missing") else "dali"
    findings["bf16"] = bool(gpus) and torch.cuda.is_bf16_supported()
    findings["training_backend"] = "nccl" if gpus else "gloo"
    findings["faiss_gpus"] = _faiss_gpus()
    findings["ray_address"] = os.environ.get("RAY_ADDRESS", "none: a separate Ray on this machine")
    return findings


def _version(module: str) -> str:
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        return f"missing ({error})"
    return str(getattr(loaded, "__version__", "unknown"))


def _faiss_gpus() -> int:
    try:
        import faiss
    except ImportError:
        return 0
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0
