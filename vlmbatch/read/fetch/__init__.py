"""Files behind URLs: http with its address guard, and the stores that fsspec opens."""
