"""Measurements that the README's numbers come from."""
