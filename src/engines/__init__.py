"""Engines: where the commands of a list of jobs run, and what each of them does now."""
