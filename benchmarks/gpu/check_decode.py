"""Decoding: images per second by DALI on the GPU and its JPEG engines compared with the CPU; the same pixels; no
batch overwritten."""

import dataclasses
import io
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.outcome import NotHereError, Outcome, Setting, median_s, round_to
from benchmarks.suite.report import Table

# Levels of 256 that the mean pixel of a batch may differ by. Two JPEG decoders of one image differ by 0.1 to 0.5, two
# resampling filters by about as much; DALI on the CPU against torchvision: 0.05 to 0.6 here.
_MOST_LEVELS = 1.5


def make_photos(num: int, width: int, height: int) -> list[bytes]:
    """JPEGs of smooth noise with a grain, quality 90: as many bytes a pixel as photographs have."""
    photos = []
    for seed in range(num):
        draw = np.random.default_rng(seed)
        coarse = draw.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grainy = np.asarray(smooth, np.float32) + draw.normal(0, 5, (height, width, 1))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(grainy, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    return photos


def measure(setting: Setting) -> Outcome:
    from fsl_dist.data.config import DataConfig
    from fsl_dist.data.decode import make_decoder

    found = Outcome()
    width, height, batch = (160, 120, 4) if setting.is_small else (600, 450, 256)
    made = make_photos(4 if setting.is_small else 128, width, height)
    photos = [made[number % len(made)] for number in range(batch)]
    threads = 2 if setting.is_small else 16
    # Pixels come out as they are, in levels of 256.
    levels = DataConfig(
        image_size=96 if setting.is_small else 224,
        resize_size=112 if setting.is_small else 256,
        mean=(0.0, 0.0, 0.0),
        std=(1 / 255, 1 / 255, 1 / 255),
        threads=threads,
    )
    table: list[tuple[str | float, ...]] = []

    def add(name: str, decode: Callable[[], object]) -> None:
        seconds = median_s(decode, setting, repeats=1 if setting.is_small else 4)
        table.append((name, round_to(batch / seconds), round_to(1000 * seconds / batch)))

    decoders: dict[str, Any] = {}
    places = [("torchvision", "cpu"), ("dali", "cpu"), *([("dali", "cuda:0")] if setting.is_gpu else [])]
    for name, device in places:
        config = dataclasses.replace(levels, decoder=name)
        try:
            decoder = make_decoder(config, device=device, max_batch=batch)
        except Exception as error:
            found.notes.append(f"decode by {name} on {device}: not run: {str(error).splitlines()[0]}")
            continue
        decoders[f"{name} on {device}"] = decoder
        add(
            f"this project's {name} decoder on {device}, {threads} threads",
            lambda d=decoder: d.decode(photos, None),
        )
    _compare(found, decoders, photos)
    for name, decoder in decoders.items():
        if name != "torchvision on cpu":
            _check_streams(found, name, decoder, made, setting)
    for decoder in decoders.values():
        decoder.close()
    for make in (_add_bare_dali, _add_torchvision_on_gpu):
        try:
            make(found, add, photos, threads, setting)
        except (ImportError, NotHereError) as missing:
            found.notes.append(f"decode: {str(missing).splitlines()[0]}")
    found.tables.append(
        Table(
            f"Decoding {width} × {height} JPEGs, batches of {batch}", ("", "img/s", "ms/image"), tuple(table)
        )
    )
    return found


def _compare(found: Outcome, decoders: dict[str, Any], photos: Sequence[bytes]) -> None:
    """Mean distance of pixels between all pairs of decoders, with crops and mirrors drawn."""
    from fsl_dist.data.augmentation.parameters import draw_augment
    from fsl_dist.data.config import DataConfig

    augment = draw_augment(DataConfig(), 0, 0, np.arange(len(photos)))
    images = {name: decoder.decode(photos, augment).float().cpu() for name, decoder in decoders.items()}
    names = list(images)
    for position, one in enumerate(names):
        for other in names[position + 1 :]:
            apart = (images[one] - images[other]).abs().mean(dim=(1, 2, 3)).max().item()
            found.check(f"decode: levels between {one} and {other}, worst image", apart, _MOST_LEVELS)


def _check_streams(found: Outcome, name: str, decoder: Any, photos: list[bytes], setting: Setting) -> None:
    """Batches used late, while the next ones are decoded, hold the pixels they hold when everything waits for
    everything."""
    batches = [photos[shift:] + photos[:shift] for shift in range(len(photos))][:8]
    wanted = []
    for batch in batches:
        images = decoder.decode(batch, None)
        if setting.is_gpu:
            torch.cuda.synchronize()
        wanted.append(images.double().sum().item())
    streams = {"the default stream": None}
    if setting.is_gpu:
        streams["another stream"] = torch.cuda.Stream()
    side = 256 if setting.is_small else 8192
    busy = torch.ones(side, side, device=setting.device)
    for where, stream in streams.items():
        sums = []
        with torch.cuda.stream(stream):  # None: stays where it is
            for batch in batches:
                images = decoder.decode(batch, None)
                # What uses the images waits behind this, while the next batch is decoded and the images are let go.
                busy @ busy
                sums.append(images.double().sum())
                del images
        if setting.is_gpu:
            torch.cuda.synchronize()
        changed = sum(abs(one.item() - other) > 1e-9 * other for one, other in zip(sums, wanted, strict=True))
        found.check(f"decode: batches by {name} that changed before they were used on {where}", changed, 0.0)


def _add_bare_dali(found: Outcome, add: Any, photos: Sequence[bytes], threads: int, setting: Setting) -> None:
    """DALI's decoder alone, nothing after it: on the CPU, and on the GPU with a share of the images for the JPEG
    engines."""
    import nvidia.dali.fn as fn
    from nvidia.dali import pipeline_def, types

    @pipeline_def
    def decode_only(options: dict[str, Any]) -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, output_type=types.RGB, **options)

    encoded = [np.frombuffer(photo, np.uint8) for photo in photos]
    ways: dict[str, dict[str, Any]] = {"on the CPU": {"device": "cpu"}}
    if setting.is_gpu:
        for load in (0.0, 0.65, 1.0):
            ways[f"mixed, hw_decoder_load={load:g}"] = {"device": "mixed", "hw_decoder_load": load}
    for name, options in ways.items():
        pipeline = decode_only(
            options,
            batch_size=len(photos),
            num_threads=threads,
            device_id=0 if setting.is_gpu else None,
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        pipeline.build()

        def run(pipeline: Any = pipeline) -> None:
            pipeline.feed_input("encoded", encoded)
            pipeline.run()

        watch = _watch_engines() if setting.is_gpu else None
        add(f"DALI's decoder alone, {name}", run)
        if watch is not None:
            watch.terminate()
            used = [int(line) for line in (watch.communicate()[0] or "").split() if line.isdigit()]
            busiest = f"{max(used)} %" if used else "not reported by nvidia-smi"
            found.notes.append(f"decode: {name}: busiest moment of the JPEG engines: {busiest}")


def _watch_engines() -> "subprocess.Popen[str] | None":
    """nvidia-smi, which prints how busy the JPEG engines are every 100 ms, if it is there."""
    try:
        return subprocess.Popen(
            ["nvidia-smi", "--query-gpu=utilization.jpeg", "--format=csv,noheader,nounits", "-lms", "100"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        return None


def _add_torchvision_on_gpu(
    found: Outcome, add: Any, photos: Sequence[bytes], threads: int, setting: Setting
) -> None:
    """torchvision's decode_jpeg on the GPU (nvJPEG), nothing after it."""
    if not setting.is_gpu:
        raise NotHereError("torchvision's decode_jpeg on the GPU: not run: torch sees no GPU")
    from torchvision.io import ImageReadMode, decode_jpeg

    encoded = [torch.frombuffer(bytearray(photo), dtype=torch.uint8) for photo in photos]
    add(
        "torchvision's decode_jpeg alone, on cuda",
        lambda: decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda"),
    )
