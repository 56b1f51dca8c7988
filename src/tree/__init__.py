"""Sequences that begin alike become rows in which every shared token stands once."""
