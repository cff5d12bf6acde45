"""Trials, from the search that proposes them to the choice between them."""
