"""What a user would otherwise do with a folder of images, next to `fit`: `python -m benchmarks.suite practice`."""
