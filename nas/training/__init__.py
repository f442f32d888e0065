"""What both loops share: steps, accuracies, and the memory that a step needs."""
