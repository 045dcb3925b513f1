"""Other forms of an OUTPUT."""
