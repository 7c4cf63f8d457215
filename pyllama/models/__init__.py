"""The models.  Each is a module of plain functions: a Config, init, and passes of the form y, back = f(...)."""
