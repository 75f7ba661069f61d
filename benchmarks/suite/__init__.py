"""The benchmarks of docs/benchmarks/index.md, each against its peers: `python -m benchmarks.suite NAME`."""
