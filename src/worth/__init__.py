"""How good answers are: accuracies, intervals, tests."""
