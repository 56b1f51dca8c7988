"""Sequences with common prefixes become rows in which every shared token appears once."""
