"""isaacrl: robot policies by reinforcement learning on thousands of simulated robots at once."""

__version__ = "0.1.0"


def __getattr__(name: str):
    """Heavy names load on first use, so that importing isaacrl (and the command line) stays instant."""
    if name == "make":
        from isaacrl.library import make

        return make
    if name == "Task":
        from isaacrl.task import Task

        return Task
    raise AttributeError(f"module 'isaacrl' has no attribute {name!r}")
