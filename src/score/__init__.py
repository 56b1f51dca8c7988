"""From tokens to the letters' logits, and from these to an item's scores."""
