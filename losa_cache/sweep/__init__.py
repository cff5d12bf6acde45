"""Many trials from one cache: what was found, drawn and written down."""
