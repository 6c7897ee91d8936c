"""The one exception that a user, not a programmer, has to read."""


class InputError(ValueError):
    """Something that the user gave cannot work.

    The message says what was given, what was expected, and how to fix it. Commands
    print it without a traceback and exit with code 2; everything else that is
    raised is a defect of the program and keeps its traceback.
    """
