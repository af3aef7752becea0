"""Differential privacy at the gate: mechanisms, and what they cost. Importing this package imports nothing heavy."""
