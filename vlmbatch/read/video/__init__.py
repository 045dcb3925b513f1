"""Videos to Items: containers, clocks and decoded frames."""
