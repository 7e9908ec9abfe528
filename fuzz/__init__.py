"""Fuzz targets (atheris) of the five parsers of what others send: `make fuzz-metadata`, `-manifest`, `-delta`, `-bundle`, `-serving`."""
