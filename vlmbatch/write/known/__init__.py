"""The rows of an OUTPUT during a run, and the index of them in memory."""
