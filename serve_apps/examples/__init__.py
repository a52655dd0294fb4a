"""Small pieces of user code that the shipped configuration refers to: copy them to begin with."""
