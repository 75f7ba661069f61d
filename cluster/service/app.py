"""The index service as an application that Ray Serve imports: what `serveConfigV2` of a RayService names."""

from pathlib import Path
from typing import Annotated, Any

import ray
from pydantic import Field
from ray import serve

from cluster.service.replica import make_application
from cluster.service.settings import Limits, ServiceSettings, digest_token, find_catalogue
from index import versions
from index.base.errors import RequestError
from index.base.object_cache import place_of, working_folder
from index.base.settings import settings, validate


@settings("args")
class ServiceArguments:
    """`args` of the application; the options of `fsl-dist index serve` without those of its own process."""

    index: str
    """path of the index, on storage that all pods mount, or its address at s3:// or gs://"""
    token_env: str
    """environment variable with the token that requests must have; required because others reach the service"""
    ray_version: str = ""
    """the manifest's rayVersion, which the image's Ray is compared with; empty: not compared"""
    dataset: str = ""
    """path of the data set whose keys answers have, too; empty: no keys"""
    replicas: Annotated[int, Field(ge=1)] = 1
    """processes that answer; each opens the index"""
    cpus: Annotated[int, Field(ge=1)] = 1
    """CPUs, and threads, of each"""
    max_k: int = 1000
    """neighbours a query"""
    max_batch: int = 1024
    """queries a request"""
    max_body_mb: int = 32
    """size of a request, in MiB"""
    probe_queries: Annotated[int, Field(ge=0)] = 32
    """vectors of each version by which its recall is measured for `/metrics`; 0: none"""
    verify: bool = True
    """whether checksums are compared before a version is served"""
    cache_dir: str = ""
    """folder of each node for copies of an index at an object store; empty: FSL_DIST_CACHE"""
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    """most GiB of these copies; null: as much as the disk has"""


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, once what it needs is there. Raises RequestError, VersionError; RayService shows the line."""
    args = validate(ServiceArguments, arguments, "serveConfigV2", "args")
    if args.ray_version and args.ray_version != ray.__version__:
        raise RequestError(
            f"the image has Ray {ray.__version__}, the manifest says rayVersion {args.ray_version} (an image built from this "
            "version's constraints.txt, or the manifest's rayVersion changed)"
        )
    token_sha256 = digest_token(args.token_env)
    cache = Path(args.cache_dir) if args.cache_dir else None
    index = working_folder(args.index, cache)
    folder = versions.find_version(index)
    manifest = versions.read_manifest(folder)
    is_on_disk = place_of(index) is None
    if is_on_disk:  # otherwise each node fetches and checks its own copies
        versions.check_files(folder, manifest, verify=args.verify)
    dataset = working_folder(args.dataset, cache) if args.dataset else None
    if dataset is not None:
        find_catalogue(dataset, manifest.source.get("catalogue", ""))
    return make_application(
        ServiceSettings(
            index=index,
            verify=args.verify,
            checked=folder if is_on_disk else None,
            cache_gb=args.cache_gb,
            dataset=dataset,
            limits=Limits(max_k=args.max_k, max_batch=args.max_batch, max_body_mb=args.max_body_mb),
            token_sha256=token_sha256,
            num_actors=0,
            num_replicas=args.replicas,
            num_cpus=args.cpus,
            probe_queries=args.probe_queries,
        )
    )
