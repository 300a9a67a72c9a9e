"""The commands of `rayssl`, a module each; heavy imports stay inside the functions."""
