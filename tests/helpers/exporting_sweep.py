"""A sweep on a Ray of its own, which writes down the port where that Ray exports.

python exporting_sweep.py SWEEP.yaml FILE
"""

import sys
from pathlib import Path

from fsl_dist.training.ray.session import ray_session


def main(sweep_file: str, port_file: str) -> None:
    with ray_session(2):
        import ray

        from index.base.files import write_atomic
        from tune.sweeps.sweeping import sweep

        write_atomic(Path(port_file), str(ray.nodes()[0]["MetricsExportPort"]).encode())
        sweep(sweep_file, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
