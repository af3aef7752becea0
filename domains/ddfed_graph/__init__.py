"""Graphs: node classification on one graph, and sets of graphs."""
