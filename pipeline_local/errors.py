"""What a user can get wrong, told in one line each: what, what was got, what to do."""


class UserError(Exception):
    """A mistake the user can mend. The command line prints it without a traceback, exit code 2."""


class ConfigError(UserError):
    """Every problem of a configuration at once, one line each.

    Args:
        problems: complete sentences, each with what is wrong, what was got and what to do.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))
