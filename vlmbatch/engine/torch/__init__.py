"""The torch engine: SmolVLM2 with continuous batching."""
