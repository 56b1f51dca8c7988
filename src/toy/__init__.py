"""What is invented: the sample corpus, the miniature, and the bench and its inputs."""
