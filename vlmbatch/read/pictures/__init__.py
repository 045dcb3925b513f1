"""Picture files and documents to Items."""
