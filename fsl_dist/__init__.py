"""One run: data, samplers, models, methods, training and evaluation.

The names below are public (docs/reference/python_api.md) and are imported on first use. Neighbour search is the
package `index`.
"""

from typing import TYPE_CHECKING

from index.base.lazy import public_names

if TYPE_CHECKING:
    from fsl_dist import data as data
    from fsl_dist import losses as losses
    from fsl_dist import methods as methods
    from fsl_dist import models as models
    from fsl_dist import samplers as samplers
    from fsl_dist.config import RunConfig as RunConfig
    from fsl_dist.data.catalogue import Catalogue as Catalogue
    from fsl_dist.dataset import adopt as adopt
    from fsl_dist.dataset import open_data as open_data
    from fsl_dist.dataset import pack as pack
    from fsl_dist.dataset import resplit as resplit
    from fsl_dist.errors import ConfigError as ConfigError
    from fsl_dist.errors import DataError as DataError
    from fsl_dist.errors import FslDistError as FslDistError
    from fsl_dist.errors import RequestError as RequestError
    from fsl_dist.errors import TrainingError as TrainingError
    from fsl_dist.errors import VersionError as VersionError
    from fsl_dist.new_run import train as train
    from fsl_dist.run import Run as Run
    from fsl_dist.run import open_run as open_run
    from fsl_dist.shipped import list_configs as list_configs
    from fsl_dist.version import __version__ as __version__
    from tune.doctor import Diagnosis as Diagnosis
    from tune.doctor import doctor as doctor
    from tune.fit.fitting import Fit as Fit
    from tune.fit.fitting import fit as fit
    from tune.sweeps.sweeping import Sweep as Sweep
    from tune.sweeps.sweeping import sweep as sweep

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = public_names(__name__, __file__)
