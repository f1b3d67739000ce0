"""From run folders to numbers, tables, figures and pages."""
