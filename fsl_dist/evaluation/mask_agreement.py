"""JA: the agreement of activation maps with the object masks (CHAI, Table 1)."""

import io
import logging

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.crops import crop_offset, resized_extents
from fsl_dist.data.images import explain
from fsl_dist.data.loader import Loader, Request
from fsl_dist.data.selection import Selection
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import DataError, RequestError
from fsl_dist.evaluation.activation_maps import activation_maps, foreground, jaccard
from fsl_dist.evaluation.mapped_images import map_images
from fsl_dist.samplers.scan import scan_batches
from fsl_dist.training.trained import TrainedRun
from index import ShardedIndex

log = logging.getLogger(__name__)

# Number of images whose feature maps and weights are in memory: 64 of 1,280 × 7 × 7 are 16 MB.
_IMAGES_AT_A_TIME = 64


def crop_mask(mask: Image.Image, config: DataConfig, above: int) -> NDArray[np.bool_]:
    """Foreground of a mask as the network sees its image: bool [S, S], resized and cropped at the centre.

    Values above `above` are foreground, in a colour mask those of any channel but alpha; the nearest pixel is taken, so
    that no value appears that the mask lacks.
    """
    if mask.mode in ("LA", "RGBA"):
        mask = mask.convert(mask.mode[:-1])
    values = np.asarray(mask)
    is_object = (values if values.ndim == 2 else values.max(axis=2)) > above
    height, width = resized_extents(is_object.shape[0], is_object.shape[1], config)
    resized = Image.fromarray(is_object).resize((width, height), Image.Resampling.NEAREST)
    side, centre = config.image_size, np.float32(0.5)
    top, left = crop_offset(centre, height, side), crop_offset(centre, width, side)
    return np.asarray(resized)[top : top + side, left : left + side]


def masked_ids(catalogue: Catalogue, selection: Selection) -> NDArray[np.int64]:
    """Ids of those images of a selection that have a mask, ascending."""
    return np.sort(selection.ids[catalogue.locate_masks(selection.ids).size > 0])


def vectors_of(index: ShardedIndex, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The index's vectors of `ids` (int64 [n], all in it): float32 [n, D]."""
    order = np.argsort(index.ids, kind="stable")
    return index.vectors(0, index.num_vectors)[order[np.searchsorted(index.ids, ids, sorter=order)]]


def measure_agreement(
    trained: TrainedRun, config: RunConfig, gallery: ShardedIndex, query: Selection
) -> dict[str, float]:
    """`ja`: mean Jaccard index of a query's activation map (against its nearest training image) and its mask.

    The map is upsampled to the network's view, scaled to 0 … 1 and thresholded by Otsu's method (the paper specifies
    none of the three); the mask is transformed to the same view. The mean is over all queries that have a mask.

    Raises RequestError if no query has a mask, or if the network has no activation maps.
    """
    if config.data.features:
        raise RequestError(
            f"activation maps need images; {config.run.dir} (method.kind={config.method.kind}) was trained on "
            f"data.features={config.data.features}"
        )
    catalogue = trained.catalogue
    ids = masked_ids(catalogue, query)
    if len(ids) == 0:
        raise RequestError(
            f"ja compares activation maps of {config.run.dir} (method.kind={config.method.kind}) with masks; none "
            f"of the {len(query)} queries of data.dataset={config.data.dataset} has one, of all its "
            f"{catalogue.num_samples} images {len(masked_ids(catalogue, _everything(catalogue)))} "
            "(pack(mask_column=…) stores masks)"
        )
    store = ShardStore(catalogue)
    batches = list(scan_batches(0, len(ids), min(_IMAGES_AT_A_TIME, trained.embedder.batch_size)))
    requests = (Request(ids[rows]) for rows in batches)
    found: list[float] = []
    with Loader(trained.embedder.source, requests, config.data.prefetch) as loader:
        for request, images in loader:
            mapped = map_images(trained.embedder, images, config)
            nearest = gallery.search(mapped.vectors, 1).ids[:, 0]
            planes = activation_maps(mapped.maps, mapped.vectors, vectors_of(gallery, nearest))
            masks = read_masks(catalogue, store, request.ids, config)
            found += [
                jaccard(foreground(plane, config.data.image_size), mask)
                for plane, mask in zip(planes, masks, strict=True)
            ]
    store.close()
    if len(ids) < len(query):
        log.info("ja is over the %d of %d queries that have a mask", len(ids), len(query))
    return {"ja": float(np.mean(found))}


def read_masks(
    catalogue: Catalogue, store: ShardStore, ids: NDArray[np.int64], config: RunConfig
) -> list[NDArray[np.bool_]]:
    """Read the masks of `ids` (int64 [n], each with a mask), transformed by `crop_mask`.

    Raises DataError if a mask cannot be decoded, or has another size than its image.
    """
    masks = []
    sizes = catalogue.image_sizes(ids).tolist()
    for sample, encoded, size in zip(ids.tolist(), store.read_masks(ids), sizes, strict=True):
        assert encoded is not None
        try:
            mask = Image.open(io.BytesIO(encoded))
            mask.load()
        except Exception as error:  # PIL raises a dozen types for damaged images
            raise _bad_mask(catalogue, sample, f"does not decode: {explain(error)}") from error
        if [mask.height, mask.width] != size:
            told = f"has {mask.width} × {mask.height} pixels, its image {size[1]} × {size[0]}"
            raise _bad_mask(catalogue, sample, told)
        masks.append(crop_mask(mask, config.data, config.evaluation.mask_above))
    return masks


def _bad_mask(catalogue: Catalogue, sample: int, reason: str) -> DataError:
    return DataError(
        f"the mask of sample '{catalogue.keys([sample])[0]}' (id {sample}) of '{catalogue.folder}' {reason}; pack again"
    )


def _everything(catalogue: Catalogue) -> Selection:
    return Selection.from_labels(np.arange(catalogue.num_samples), catalogue.labels)
