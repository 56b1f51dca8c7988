"""Better prompts are searched for."""
