"""What runs apps on a node: the runner host, and inside an image the zygote and the runner."""
