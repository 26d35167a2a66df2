"""The two ways a command ends badly: a mistake the user can mend, and a gate that was not passed."""

import click


class QCompressError(click.ClickException):
    """One line that names the file, the number and the cure. Exit code 1, no traceback."""

    exit_code = 1


class GateFailure(QCompressError):
    """A limit that the user set was passed, or a checkpoint breaks a rule. Exit code 3."""

    exit_code = 3
