"""Estimates for runs, before they start: memory, time, disk, and items that are too long."""
