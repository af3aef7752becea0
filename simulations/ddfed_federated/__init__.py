"""Federated dataset distillation on Flower: methods, partitions, and the places where a federation runs."""
