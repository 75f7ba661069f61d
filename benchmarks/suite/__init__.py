"""The benchmarks of docs/benchmarks.md, each against its peers: `python -m benchmarks.suite NAME`."""
