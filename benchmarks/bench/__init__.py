"""The project's own tables: what every gate costs, on a CPU and on a GPU, in every form.

`python -m benchmarks.bench` (in the root of the repository; `make bench` and `make bench-gpu`)
checks each case against the truth in float64, times it in turns with the plain network and writes
it to `benchmarks/results/DEVICE.csv`. Users have `spem bench` for their own networks.
"""
