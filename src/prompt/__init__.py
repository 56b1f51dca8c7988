"""An item becomes messages, and messages become tokens."""
