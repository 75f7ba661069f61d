"""Export a trained embedder for other programs: ONNX, safetensors, or a program of torch.export."""

import copy
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fsl_dist.errors import RequestError, TrainingError
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.embedding import FullPrecisionLinear, Network
from fsl_dist.models.lora import merge_lora
from fsl_dist.training.trained import TrainedRun
from fsl_dist.version import __version__
from index.base.extras import require
from index.base.files import new_token
from index.base.object_cache import put_file
from index.base.settings import dump, validate

METADATA = "fsl_dist.json"
"""name of the metadata among a .pt2 file's extra files"""

# Settings of the backbone that made the weights and are not needed to load them; low-rank updates are merged.
_AS_EXPORTED = {"weights": "", "pretrained": False, "freeze": 0, "lora_rank": 0, "lora_alpha": 0.0}
_NUM_CHECKED = 4
_TOLERANCE = 1e-4


class Embed(nn.Module):
    """A network's embedding as its forward pass, in float32 on the CPU and without layers that autocast matters to."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).cpu().float().eval()
        self.network.to(memory_format=torch.contiguous_format)
        self.network.classifier = self.network.fc7 = None
        merge_lora(self.network)
        for module in list(self.network.modules()):
            for name, child in module.named_children():
                if isinstance(child, FullPrecisionLinear):
                    plain = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
                    plain.load_state_dict(child.state_dict())
                    setattr(module, name, plain)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (float32 [n, dim]) of normalised images (float32 [n, C, S, S])."""
        return self.network.embed(images)


def export(trained: TrainedRun, out: Path) -> dict[str, str]:
    """Write a run's embedder to `out` and verify the file: it must embed some images as the run does.

    The exported model maps normalised images, float32 [n, C, S, S] with any n, to embeddings, float32 [n, dim].

    Args:
        trained: the run.
        out: a file that ends in .onnx, .safetensors or .pt2.

    Returns:
        The metadata in the file: the preprocessing of an image, and what was exported. Values are JSON.

    Raises:
        RequestError: `out` has another ending, or a package is missing (pip install 'fsl-dist[export]').
        TrainingError: the file's embeddings differ from the run's by more than 1e-4 of the largest number.
    """
    if out.suffix not in _WRITERS:
        raise RequestError(f"out={out} must end in {' or '.join(_WRITERS)}")
    write, embed = _WRITERS[out.suffix]
    module = Embed(trained.embedder.network).eval()
    ids = np.arange(min(_NUM_CHECKED, trained.catalogue.num_samples))
    images = trained.embedder.source.fetch(ids, None).float().cpu().contiguous()
    with torch.no_grad():
        expected = module(images).numpy()
    metadata = _describe(trained)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{new_token()}{out.suffix}")
    try:
        write(module, images, metadata, unfinished)
        # One image less than was exported with, so that the number of images is known to be free.
        for some in (slice(0, len(images)), slice(0, len(images) - 1)):
            _compare(embed(unfinished, images[some]), expected[some], out)
        put_file(unfinished, out)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return metadata


def _compare(found: NDArray[np.float32], expected: NDArray[np.float32], out: Path) -> None:
    apart = float(np.abs(found - expected).max(initial=0)) / max(1.0, float(np.abs(expected).max(initial=0)))
    if found.shape != expected.shape or not apart <= _TOLERANCE:
        raise TrainingError(
            f"out={out}: the exported embedder's embeddings differ from the run's by {apart:.1e} "
            f"(at most {_TOLERANCE:.0e}); nothing was written"
        )


def _describe(trained: TrainedRun) -> dict[str, str]:
    config, network = trained.config, trained.embedder.network
    data = config.data
    images = {
        "layout": "NCHW",
        "channel_order": "RGB" if data.channels == 3 else "L",
        "image_size": data.image_size,
        "resize": data.resize,
        "resize_size": data.resize_size,
        "interpolation": f"{data.interpolation}, antialiased",
        "crop": "center",
        "scale": 1 / 255,
        "mean": data.mean[: data.channels],
        "std": data.std[: data.channels],
    }
    facts = {
        "producer": f"fsl-dist {__version__}",
        "sample_shape": trained.embedder.source.sample_shape,
        **({} if data.features else images),
        "embedding_dim": network.embedding_dim,
        "normalise": network.normalise,
        "backbone": {**dump(config.backbone), **_AS_EXPORTED},
        "method": config.method.kind,
        "parameters": trained.parameters,
    }
    return {name: json.dumps(value) for name, value in facts.items()}


def _write_onnx(module: Embed, images: torch.Tensor, metadata: dict[str, str], out: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package)
    logging.getLogger("onnxscript").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own use of torch and onnx
        program = torch.onnx.export(
            module,
            (images,),
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            input_names=["images"],
            output_names=["embeddings"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(str(out), external_data=False)


def _embed_by_onnx(path: Path, images: torch.Tensor) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (embeddings,) = session.run(None, {"images": images.numpy()})
    return embeddings


def _write_safetensors(module: Embed, images: torch.Tensor, metadata: dict[str, str], out: Path) -> None:
    from safetensors.torch import save_file

    save_file(module.network.state_dict(), str(out), metadata=metadata)


def _embed_by_safetensors(path: Path, images: torch.Tensor) -> NDArray[np.float32]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        facts = {name: json.loads(value) for name, value in file.metadata().items()}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    network = build_network(
        validate(BackboneConfig, facts["backbone"], str(path)),
        sample_shape=tuple(facts["sample_shape"]),
        num_classes=0,
        normalise=facts["normalise"],
    )
    network.load_state_dict(tensors)
    with torch.no_grad():
        return network.eval().embed(images).numpy()


def _write_pt2(module: Embed, images: torch.Tensor, metadata: dict[str, str], out: Path) -> None:
    program = torch.export.export(
        module, (images,), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
    )
    torch.export.save(program, out, extra_files={METADATA: json.dumps(metadata)})


def _embed_by_pt2(path: Path, images: torch.Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        return torch.export.load(path).module()(images).numpy()


_Write = Callable[[Embed, torch.Tensor, dict[str, str], Path], None]
_Read = Callable[[Path, torch.Tensor], NDArray[np.float32]]

_WRITERS: dict[str, tuple[_Write, _Read]] = {
    ".onnx": (_write_onnx, _embed_by_onnx),
    ".safetensors": (_write_safetensors, _embed_by_safetensors),
    ".pt2": (_write_pt2, _embed_by_pt2),
}
