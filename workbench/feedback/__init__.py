"""What labelers said: agreement between them, and their judgements as training data."""
