"""Invented data and models: the sample corpus, the miniature, and the bench with its inputs."""
