"""Import and export of other libraries' models; only this package uses their names."""
