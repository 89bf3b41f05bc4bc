"""The table of `fastrnn.backends.cost`: times are measured, it is fitted to them, and its choices are judged."""
