"""What a machine does with a model, beside the machine's own limits and, where it is asked for,
beside transformers. Imports nothing before it is used.
"""
