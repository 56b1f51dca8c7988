"""The page: what runs and votes are worth on a split, and a browser of its items, in one HTML file."""
