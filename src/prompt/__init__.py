"""From an item to chat messages, and from messages to tokens."""
