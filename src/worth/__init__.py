"""What answers are worth: accuracies, intervals, tests."""
