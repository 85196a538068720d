"""What a server accepts: one dataclass, whose metadata describes each field."""

import dataclasses
from typing import Any


def _limit(default: Any, low: float, high: float, help: str) -> Any:
    return dataclasses.field(default=default, metadata={"range": (low, high), "help": help})


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the server accepts."""

    max_body: int = _limit(2**20, 2**8, 2**30, "Bytes of a request.")
    max_texts: int = _limit(128, 1, 2**20, "Texts of a request.")
    max_chars: int = _limit(5000, 1, 2**20, "Characters of a text.")
    max_beam_size: int = _limit(16, 1, 256, "Hypotheses or samples that a request may ask for.")
    max_queue: int = _limit(1024, 1, 2**20, "Texts that wait; more are refused.")
    timeout: float = _limit(60.0, 0.1, 3600.0, "Seconds until a request is given up.")
    grace: float = _limit(30.0, 0.0, 3600.0, "Seconds to answer what is accepted, when stopped.")
