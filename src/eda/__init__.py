"""The analysis of a corpus: measures, pictures, and conclusions for modelling."""
