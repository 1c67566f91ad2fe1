"""Estimators, metrics and score reports."""
