"""Files of every kind that mmsurgery reads and writes: whole or not at all, self-verifying, bounded."""
