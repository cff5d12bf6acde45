"""What the machine gives: its devices, its memory, and work done ahead on it."""
