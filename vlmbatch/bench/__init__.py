"""Benchmark a model on a machine, beside the machine's own limits and, if asked for, beside
transformers. Imports are lazy.
"""
