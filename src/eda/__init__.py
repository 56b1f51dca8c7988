"""What a corpus looks like: what is measured of it, and what follows."""
