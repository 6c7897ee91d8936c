"""Runs side by side: reading them, drawing them, and laying them out on a page."""
