"""The machine: its devices, its memory, and work in advance on threads."""
