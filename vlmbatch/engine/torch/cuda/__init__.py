"""Decode steps as CUDA graphs, and uploads from pinned memory."""
