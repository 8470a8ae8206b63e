"""A node's logic, without network and without time of its own."""
