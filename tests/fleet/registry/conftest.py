"""A registry with fresh keys on both databases, and the digit models of the repository."""

from databases import database, database_templates
from registries import clock, goldens_of, import_digits, registry

__all__ = ["clock", "database", "database_templates", "goldens_of", "import_digits", "registry"]
