"""Benchmarks of a training step: the fused kernels against plain PyTorch. ``ceprop bench`` runs them."""
