"""One readable script a claim. `_settings` is what their command lines share; the rest is `kdjax.runs`."""
