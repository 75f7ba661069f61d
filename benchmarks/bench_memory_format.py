"""channels_last compared with contiguous images, forward and backward, on this machine's CPU: why networks here are
in channels_last.

    python -m benchmarks.bench_memory_format

Two minutes; prints a Markdown table. Both are given images in channels_last, as the decoders hand them out.
"""

import copy
import functools
import statistics

import torch
import torchvision

from benchmarks.suite.interleave import interleave
from index.runtime import flushing_denormals, keep_freed_memory

# Name in torchvision, image size, images.
CASES = (
    ("resnet18", 64, 64), ("resnet18", 96, 32), ("resnet18", 224, 16), ("resnet50", 64, 32), ("resnet50", 224, 8),
    ("mobilenet_v2", 64, 64), ("mobilenet_v2", 224, 16), ("densenet121", 64, 32), ("densenet121", 224, 8),
    ("vgg11", 224, 8), ("convnext_tiny", 224, 8),
)  # fmt: skip
CONTIGUOUS, LAST = "contiguous", "channels_last"
FORMATS = {CONTIGUOUS: torch.contiguous_format, LAST: torch.channels_last}


def train_once(network: torch.nn.Module, images: torch.Tensor, memory_format: torch.memory_format) -> float:
    """One forward and backward pass."""
    network.zero_grad()
    network(images.contiguous(memory_format=memory_format)).square().mean().backward()
    return 1.0


def main() -> None:
    keep_freed_memory()
    print("| network | px | images | contiguous, ms | channels_last, ms | ratio |\n| --- |" + " ---: |" * 5)
    for name, size, num in CASES:
        network = getattr(torchvision.models, name)()
        images = torch.randn(num, 3, size, size).contiguous(memory_format=torch.channels_last)
        turns = {
            key: functools.partial(
                train_once, copy.deepcopy(network).to(memory_format=memory_format), images, memory_format
            )
            for key, memory_format in FORMATS.items()
        }
        measured = interleave(turns, unit="step")
        ratio = statistics.median(measured.ratios(LAST, CONTIGUOUS))
        times = " | ".join(f"{measured.median_ms(key):.0f}" for key in FORMATS)
        print(f"| {name} | {size} | {num} | {times} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    with flushing_denormals(torch.set_flush_denormal):
        main()
