"""The notebook's door: magics, output and the memory of which cell made what."""
