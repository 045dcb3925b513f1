"""A file of OpenAI's batch requests, answered into a file of results."""
