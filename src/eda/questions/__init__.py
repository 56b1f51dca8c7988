"""The questions that the notebooks ask of a corpus, by what they are about."""
