"""Files on this disk: walked, told apart by name, opened, copied for a while."""
