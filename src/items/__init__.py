"""One item: the JSON of a file becomes an item, and what is odd about it is noted."""
