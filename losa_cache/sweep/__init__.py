"""Many trials from one cache: what is searched, trained together, chosen and reported."""
