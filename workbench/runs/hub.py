"""Whether the Hugging Face Hub answers, asked once and briefly: its libraries would first retry for a minute."""

from collections.abc import Callable

from huggingface_hub.errors import HfHubHTTPError

TIMEOUT = 5.0  # seconds to wait for the first answer


def hub_answers(ask: Callable[..., object], name: str) -> bool:
    """Whether `ask(name, timeout=...)` about one repository is answered; "there is no such" is an answer too."""
    try:
        ask(name, timeout=TIMEOUT)
    except HfHubHTTPError:
        return True
    except Exception:  # no route, no name, time out, offline mode: whatever the HTTP library calls it
        return False
    return True
