"""Tokens become the letters' logits, and these an item's scores."""
