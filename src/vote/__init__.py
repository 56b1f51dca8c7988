"""Combines the answers of many runs into one, and checks the file to hand in."""
