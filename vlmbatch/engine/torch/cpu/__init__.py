"""Kernels that are fast on CPUs."""
