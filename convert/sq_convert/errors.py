"""What goes wrong for a reason the user can do something about."""


class ConvertError(Exception):
    """The message is one sentence or two: what, where, expected and found, what to do. Exit status 1."""


class UsageError(ConvertError):
    """Options that contradict each other or make no sense. Exit status 2."""
