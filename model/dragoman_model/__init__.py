"""Trains and evaluates translation models in PyTorch."""
