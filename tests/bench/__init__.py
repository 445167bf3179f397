"""What the hooks cost: `make bench`."""
