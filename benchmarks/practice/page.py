"""The comparison as Markdown: one table for each data set, and how `fit` compares with the best other row."""

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks.practice.records import RunRecord, SetRecord, read_record
from benchmarks.practice.rows import ROWS
from benchmarks.practice.sets import SETS

FIT = "fsl_dist.fit"
HEAD = """# fsl-dist compared with common alternatives

`python -m benchmarks.page` writes this page from `benchmarks/results/practice/*.json`. To change a figure, measure
again.

```console
FSL_DIST_TEST_DATA=FOLDER python -m benchmarks.suite practice --out benchmarks/results
python -m benchmarks.suite practice --folder FOLDER --weights mobilenet_v2.pth --out RESULTS
```

The first command measures all sets from the archives of real data. Finished runs are reused, so it resumes.
`--set NAME` and `--row NAME` measure some of them. The second command compares the same rows on your own folder.
Install the other libraries with `pip install "fsl-dist[bench]"`. A row whose library is missing is left out, and the
page says so.

## What is equal for all rows

- **Data.** One packed data set with one train, validation and test split. All rows train on train. All choices
  (learning rate, K_p, C, class weights, metric) are made on validation by the mean of accuracy and mean class recall
  (MCR). The chosen run of a row is scored on test once. No row is trained again on train + validation.
- **Backbone.** torchvision's MobileNetV2 with ImageNet weights, and the same image size. Embeddings have 1,280
  dimensions.
- **Images.** Every fine-tuned row sees the same number of images, in batches of 64. The recipe is AdamW, 10 %
  warm-up, cosine, clipped gradients, random resized crops, and colour changes. Images are mirrored if a mirrored
  image keeps its class. Classifiers use label smoothing of 0.1.
- **Tuning.** With seed 0, each row tries the same learning rates: three for the last blocks, two for the whole
  network. The other seeds use the chosen one.
- **Time.** `fit` gets the seconds of one run of plain fine-tuning of the whole network, without that row's tuning. It
  gets at least 120 s, because starting Ray and embedding all images take part of them. FLAML gets the seconds of
  plain fine-tuning of the last blocks, including its tuning.

## What is not equal, and which row it favours

- The last blocks are fine-tuned on cached activations of a few augmented copies of each image; the first 14 of 19
  blocks are frozen. This makes a run cheap, and is the same for all losses. Compare losses among these rows. Compare
  with the whole network to see the cost of freezing.
- The seconds of such a row include the cache of activations once. "With tuning" adds the runs with the other learning
  rates. Seconds are wall time and depend on other work on the machine; CPU seconds do not. The CPU seconds of `fit`
  are spent in other processes and are not given.
- `fit` chooses among many candidates on the same validation images within its seconds. The fine-tuned rows have these
  seconds in addition to tuning.
- Rows without randomness have one run. ± is the standard deviation over seeds (ddof 0). It does not include the
  choice of the split or of the test images, whose standard error is given with each set.
- If your own folder has split folders but no validation images, 15 % of train is held out for the other rows. `fit`
  holds out its own share, and trains its final run on all of train.
- The frozen network is taken only if it is more than one standard error better. This rule was made after the first
  figures of blood-cells had been seen: `fit` had then kept the frozen network in all runs, at 63 % to 79 % on test.
  Test images chose nothing else.
- AutoGluon is not included: its release 1.6 needs older versions of torch and Ray than fsl-dist, so both cannot be
  installed in one environment.
"""


def render_practice(folder: Path) -> str:
    """The page of all records in `folder`."""
    order = {name: place for place, name in enumerate(SETS)}
    records = sorted(
        (read_record(path) for path in folder.glob("*.json")),
        key=lambda record: (order.get(record.name, len(order)), record.name),
    )
    parts = [HEAD, *_summarise(records), *(render_set(record) for record in records)]
    if not records:
        parts.append("No set has been measured on this version yet.")
    return "\n".join(parts).rstrip() + "\n"


def render_set(record: SetRecord) -> str:
    """The section of one data set."""
    config, num_test = record.config, int(str(record.config["test"]))
    lines = [
        f"## {record.name}",
        "",
        _wrap(
            f"{config['about']}. {config['classes']} classes; {config['train']} training, {config['val']} validation and "
            f"{num_test} test images of {config['image_size']} px. {_noise(record, num_test)}"
        ),
        "",
        "| row | runs | rate | images seen | seconds | CPU s | with tuning, CPU s | Acc % | MCR % |",
        "| --- |" + " ---: |" * 8,
    ]
    for row in _order_rows(record):
        runs = record.of_row(row)
        for place, head in enumerate(runs[0].heads):
            lines.append(_line(row, head, runs, is_first=place == 0))
    lines.append("")
    lines += [f"{row} is missing: {reason}.\n" for row, reason in record.missing.items()]
    machine = ", ".join(f"{key} {value}" for key, value in record.machine.items())
    versions = ", ".join(f"{key} {value}" for key, value in record.versions.items())
    threads = ", ".join(str(each) for each in sorted({run.threads for run in record.runs}))
    lines += [_wrap(f"Threads: {threads}. Machine: {machine}. {versions}."), ""]
    return "\n".join(lines)


def _line(row: str, head: str, runs: Sequence[RunRecord], *, is_first: bool) -> str:
    """A row's line for one of its heads; what belongs to the run is shown with the first one."""
    name = f"{row}: {head}" if head else row
    setting = {run.heads[head].setting for run in runs if run.heads[head].setting}
    if setting and len(setting) == 1:
        name += f" ({setting.pop()})"
    cells = [""] * 6
    if is_first:
        cpu = [run.spent.cpu_s for run in runs if run.spent.cpu_s is not None]
        tuning = runs[0].tuning.cpu_s
        cells = [
            str(len(runs)),
            f"{runs[0].rate:g}" if runs[0].rate else "–",
            f"{statistics.fmean(run.images for run in runs):,.0f}",
            _spread([run.spent.seconds for run in runs], 0),
            _spread(cpu, 0) if cpu else "–",
            f"{statistics.fmean(cpu) + tuning:.0f}" if cpu and tuning else "–",
        ]
    scores = [_spread([100 * run.heads[head].test[key] for run in runs], 1) for key in ("acc", "mcr")]
    return f"| {' | '.join([name, *cells, *scores])} |"


def _wrap(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation; the mean alone for one value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.pstdev(values):.{digits}f}"


def _noise(record: SetRecord, num_test: int) -> str:
    if not record.runs:
        return ""
    best = max(mean for _, mean in _means(record, "acc"))
    error = 100 * (best * (1 - best) / num_test) ** 0.5
    return f"The standard error of the best accuracy is {error:.1f} points."


def _order_rows(record: SetRecord) -> list[str]:
    there = {run.row for run in record.runs}
    return [row for row in ROWS if row in there] + sorted(there - set(ROWS))


def _means(record: SetRecord, key: str) -> list[tuple[str, float]]:
    """(row and head, mean over the runs) on test."""
    return [
        (f"{row}: {head}" if head else row, statistics.fmean(run.heads[head].test[key] for run in runs))
        for row in _order_rows(record)
        for runs in [record.of_row(row)]
        for head in runs[0].heads
    ]


def _summarise(records: Sequence[SetRecord]) -> list[str]:
    """`fit` next to the best other row of each set, in either figure; nothing before `fit` was run."""
    lines = []
    for record in records:
        if not record.of_row(FIT):
            continue
        cells = [record.name]
        for key in ("acc", "mcr"):
            means = _means(record, key)
            own = max(mean for name, mean in means if name.startswith(FIT))
            name, best = max(
                (pair for pair in means if not pair[0].startswith(FIT)), key=lambda pair: pair[1]
            )
            cells += [f"{100 * own:.1f}", f"{100 * best:.1f} ({name})"]
        lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    head = [
        "## fit compared with the best other row",
        "",
        "The best other row is chosen on test, separately for each figure, so it is an upper bound.",
        "",
    ]
    titles = "| set | fit Acc | best other Acc | fit MCR | best other MCR |"
    return [*head, titles, "| --- |" + " ---: |" * 4, *lines, ""]
