"""The specification: what every kernel must compute, in plain PyTorch that imports nothing else of the package."""
