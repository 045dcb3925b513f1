"""An OUTPUT behind a URL."""
