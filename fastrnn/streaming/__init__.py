"""Recurrent layers that are called step by step, with states of their own."""
