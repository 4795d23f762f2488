"""What the command line tells a user who asked for something impossible."""


class UsageError(Exception):
    """A problem the user can fix: printed as one line, exit code 2, nothing written."""
