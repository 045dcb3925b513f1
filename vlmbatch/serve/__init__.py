"""A server: requests of many clients to one engine."""
