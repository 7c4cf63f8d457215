"""The one exception that is the user's to mend, and what the command line makes of it."""


class UserError(Exception):
    """A sentence that names the cause and the cure.  The command line prints it and exits with code 2."""
