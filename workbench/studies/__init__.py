"""What answers one question over many runs; nothing imports it."""
