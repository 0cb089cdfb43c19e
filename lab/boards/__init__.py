"""Boards that compare erasers on the small models."""
