"""Search over the model protocol, and translation from text to text."""
