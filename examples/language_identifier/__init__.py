"""Trains the small classifier of languages that cleaning uses, and tables what it confuses."""
