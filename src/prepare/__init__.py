"""Turns the official download into the three splits."""
