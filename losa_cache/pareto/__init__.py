"""Methods beside each other on one backbone: what each costs, what it reaches, and which no other beats in both."""
