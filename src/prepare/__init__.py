"""The official download becomes the three splits."""
