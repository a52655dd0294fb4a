"""Small pieces of user code that the shipped workflows refer to: copy them to begin with."""
