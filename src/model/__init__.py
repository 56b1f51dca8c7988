"""A backbone: what it is, what it weighs, how it is loaded and adapted."""
