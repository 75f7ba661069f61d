"""Activation maps of pairs of images, from the last feature map or, where that is too small, from an earlier layer.

CHAI Eq. 2 gives the value Σ_z g_z(i,j) · w_z to position (i,j) of the last map g, with w_z = (f_z(own) − f_z(other))².
That is the activation times the gradient, h · w · g_z(i,j) · ∂S/∂g_z(i,j), of S = Σ_z w_z · f_z(own) with w held
constant, because f is the mean of g. For an earlier layer a, the same S is attributed to its places by the same rule:

    M(i,j) = max(0, h · w · Σ_c a_c(i,j) · ∂S/∂a_c(i,j))

As in Grad-CAM (Selvaraju et al. 2017), places that only lower S are 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fsl_dist.config import RunConfig
from fsl_dist.embedder import Embedder
from fsl_dist.evaluation.activation_maps import activation_maps
from fsl_dist.evaluation.mapped_images import MappedImages, map_images

LEAST_SIDE = 3
"""a map with fewer rows or columns shows no places; an earlier layer is taken instead"""

# Relative to an embedding's length. Batches of different sizes may round an image differently, and bfloat16 has 8
# bits; a map of such differences would be noise in full colour.
_SAME = 1e-3


@dataclass(frozen=True, slots=True)
class Layer:
    """The layer that activation maps are taken from."""

    name: str
    """path of the module in the backbone; empty for the last feature map"""
    size: tuple[int, int]
    """rows and columns of the maps"""
    last_size: tuple[int, int]
    """rows and columns of the network's last feature map"""

    @property
    def is_last(self) -> bool:
        """Whether the maps are those of CHAI Eq. 2."""
        return not self.name

    @property
    def note(self) -> str:
        """One sentence on where the maps come from."""
        rows, columns = self.size
        if self.is_last and min(self.size) < LEAST_SIDE:
            return (
                f"The network's last feature map has {rows} × {columns} places, and no earlier layer can be used: "
                "the maps show no places."
            )
        if self.is_last:
            return f"The maps have {rows} × {columns} values, from the network's last feature map."
        last = " × ".join(map(str, self.last_size))
        return (
            f"The network's last feature map has only {last} places. The maps have {rows} × {columns} values, from "
            f"the earlier layer {self.name} (activation times gradient)."
        )


@dataclass(frozen=True, slots=True, eq=False)
class PairMaps:
    """Both activation maps of a pair of images."""

    query: NDArray[np.float64]
    """float64 [h, w]: of the query (QAM)"""
    result: NDArray[np.float64]
    """float64 [h, w]: of the other image (RAM)"""
    is_same: bool
    """the network sees no difference between the two, and both maps are zero"""
    layer: Layer


def is_same(query: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """bool [k]: which of `vectors` (float32 [k, D]) are `query` (float32 [D]) but for rounding."""
    return np.linalg.norm(vectors - query, axis=1) <= _SAME * np.linalg.norm(query)


def map_pairs(embedder: Embedder, config: RunConfig, query: Tensor, results: Tensor) -> list[PairMaps]:
    """Compute the maps of one image with each of k others.

    Args:
        embedder: of the run.
        config: of the run, for errors.
        query: float32 [1, *sample_shape].
        results: float32 [k, *sample_shape].

    Returns:
        One entry per result.

    Raises:
        RequestError: the network's embedding is not the mean of feature maps.
    """
    return pair_mapped(embedder, query, map_images(embedder, query, config), results, config)


def pair_mapped(
    embedder: Embedder, query: Tensor, mapped: MappedImages, results: Tensor, config: RunConfig
) -> list[PairMaps]:
    """`map_pairs` for a query (float32 [1, *sample_shape]) whose feature maps are known (`mapped`, one image)."""
    others = map_images(embedder, results, config)
    vector = mapped.vectors[0]
    same = is_same(vector, others.vectors)
    own = np.broadcast_to(vector, others.vectors.shape)
    other = np.where(same[:, None], own, others.vectors)
    last = (int(mapped.maps.shape[2]), int(mapped.maps.shape[3]))
    layer, module = Layer("", last, last), None
    if min(last) < LEAST_SIDE:
        layer, module = _choose_layer(embedder, query, layer)
    if module is None:
        qams = activation_maps(np.broadcast_to(mapped.maps, others.maps.shape), own, other)
        rams = activation_maps(others.maps, other, own)
    else:
        qams = _gradient_maps(embedder, module, query.expand(results.shape), own, other)
        rams = _gradient_maps(embedder, module, results, other, own)
    return [PairMaps(qam, ram, one, layer) for qam, ram, one in zip(qams, rams, same.tolist(), strict=True)]


def _choose_layer(embedder: Embedder, image: Tensor, last: Layer) -> tuple[Layer, nn.Module | None]:
    """The last stage whose output is a map of at least `LEAST_SIDE` rows and columns; `last` if there is none."""
    sizes: dict[str, tuple[int, int]] = {}

    def record(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) >= LEAST_SIDE:
            sizes.pop(name, None)
            sizes[name] = (int(output.shape[2]), int(output.shape[3]))

    stages = dict(_list_stages(embedder.network.backbone, ""))
    hooks = [
        stage.register_forward_hook(lambda _module, _input, output, name=name: record(name, output))
        for name, stage in stages.items()
    ]
    try:
        embedder.map_images(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not sizes:
        return last, None
    name = next(reversed(sizes))
    return Layer(name, sizes[name], last.last_size), stages[name]


def _list_stages(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The stages that a network runs one after the other, by path; nested sequences are divided."""
    if getattr(module, "output_fmt", "NCHW") != "NCHW":
        return  # timm's networks with maps [n, h, w, C]
    is_sequence = type(module) is nn.Sequential
    is_network = not path or hasattr(module, "forward_features")
    if not (is_sequence or is_network):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _list_stages(child, f"{path}.{name}" if path else name)


def _gradient_maps(
    embedder: Embedder,
    stage: nn.Module,
    images: Tensor,
    own: NDArray[np.float32],
    other: NDArray[np.float32],
) -> NDArray[np.float64]:
    """The maps M of this module's docstring at the output of `stage`: float64 [n, h, w].

    images: float32 [n, *sample_shape]; own, other: float32 [n, D], as for `activation_maps`. One image at a time, so
    that the memory of its gradient is that of one image.
    """
    network, device = embedder.network, embedder.device
    weights = torch.from_numpy(np.square(own.astype(np.float64) - other)).to(device, torch.float32)
    outputs: list[Tensor] = []
    hook = stage.register_forward_hook(lambda _module, _input, output: outputs.append(output))
    was_training = network.training
    network.eval()
    maps = []
    try:
        for image, weight in zip(images, weights, strict=True):
            outputs.clear()
            # A network whose layers are frozen has a gradient too if its input does.
            samples = image[None].to(device).detach().clone().requires_grad_(True)
            with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=embedder.use_bf16):
                means = network.feature_maps(samples).float().mean(dim=(2, 3))
                (gradient,) = torch.autograd.grad((means[0] * weight).sum(), outputs[-1])
            activation = outputs[-1].detach().double()
            product = (activation * gradient.double()).sum(dim=1)[0] * activation[0, 0].numel()
            maps.append(product.clamp(min=0.0).cpu().numpy())
    finally:
        hook.remove()
        network.train(was_training)
    return np.stack(maps)
