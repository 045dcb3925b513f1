"""The torch engine: SmolVLM2 and Idefics3 with continuous batching."""
