"""Sidecars: a text or subtitle file for each picture or video."""
