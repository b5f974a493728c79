"""One AsyncProxy: what is known of it, what is to be done about it, and doing it."""
