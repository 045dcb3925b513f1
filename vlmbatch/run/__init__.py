"""One batch run: queues and threads between reading, the engine and OUTPUT."""
