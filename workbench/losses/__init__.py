"""Every objective as a pure function; the trainer takes the (masked) mean in sight."""
