"""Models that judge text: the embedded one (CPU, in this package), and guard models behind transformers or a server."""
