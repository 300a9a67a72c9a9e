"""Ray: the only part of rayssl that imports it."""
