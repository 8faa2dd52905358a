"""Adapters for frameworks around chat models; each imports its framework when it is first called."""
