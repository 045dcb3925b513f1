"""Files that hold or name many inputs: manifests and archives."""
