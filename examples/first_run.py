"""From a folder of images to a trained network, its neighbours and an index.

    python first_run.py MY_IMAGES [KEY=VALUE ...]

MY_IMAGES has one folder of images for each class. KEY=VALUE are settings of the run, such as training.epochs=5.
"""

import sys
from pathlib import Path

import fsl_dist


def main(images: str, *settings: str) -> None:
    """Pack, train, evaluate, embed, predict, explain and search."""
    data = fsl_dist.pack(images, "data/mine")
    run = fsl_dist.train("own-images", data=data, dir="runs/mine", settings=settings)
    print(run.evaluate())

    photographs = [path for path in sorted(Path(images).rglob("*")) if path.is_file()][:3]
    vectors = run.embed(photographs)
    print(run.predict(photographs))
    print(run.explain(photographs, out="why"))

    index = run.build_index("indexes/mine")
    print(index.search(vectors, k=5))
    print(fsl_dist.open_run("runs/mine"))


if __name__ == "__main__":
    main(*sys.argv[1:])
