"""What a trainer saves: its step number and the state of its parts."""

from typing import Any

import torch


class Stateful:
    """`state_dict` and `load_state_dict` from the attributes named in `parts`; all else is built from the arguments."""

    parts: tuple[str, ...] = ("descent", "batches")
    step_number: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that makes the next step what it would have been."""
        states = {name: _state(getattr(self, name)) for name in self.parts}
        return {"step": self.step_number, **states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.step_number = state["step"]
        for name in self.parts:
            part = getattr(self, name)
            if isinstance(part, torch.Generator):
                part.set_state(state[name])
            elif hasattr(part, "load_state_dict"):
                part.load_state_dict(state[name])
            else:
                setattr(self, name, state[name])


def _state(part: Any) -> Any:
    """A number or list as it is, a generator or a stateful object as its state."""
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part
