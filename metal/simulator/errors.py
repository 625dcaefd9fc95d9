"""What the simulator raises."""


class MslError(Exception):
    """Text that it cannot translate or compile, or a launch that makes no sense."""


class KernelError(RuntimeError):
    """A kernel did something undefined: a bad access, a race, a barrier that some threads do not reach."""
