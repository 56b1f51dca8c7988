"""Many runs become one answer, and a file that can be handed in."""
