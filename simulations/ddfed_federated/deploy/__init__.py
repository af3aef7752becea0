"""A federation of separate machines: Flower's SuperLink and SuperNodes, their certificates, keys and commands."""
