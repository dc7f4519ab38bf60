"""What a KL budget buys: notebook 09."""
