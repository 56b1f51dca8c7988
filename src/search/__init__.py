"""The search for better prompts."""
