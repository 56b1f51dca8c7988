"""One item: how the JSON of a file becomes an item, and how oddities are noted."""
