"""The pocket model, its world, and the demo that runs the whole job on a laptop."""
