"""Kills a process that writes judgements at random moments, again and again, and counts what was lost.

    python tests/killed_writer.py labels.db 1000

The writer prints an event's id after the store returned; whatever was printed must be in the file.
"""

import json
import os
import random
import sqlite3
import sys
import time

LONGEST = 0.05  # seconds that a writer lives after its first judgement


def write(path: str, labeler: str) -> None:
    """Judge one item after the other until killed."""
    from workbench.feedback.store import Store
    from workbench.records import Judgement

    store = Store(path)
    for number in range(1_000_000):
        item = {"item_id": f"{labeler}-{number}", "prompt": "p", "completions": ["a", "b"]}
        store.add_items([item])
        event = f"event-{labeler}-{number}"
        fields = {"kind": "pair", "value": number % 2, "shown_order": [0, 1], "elapsed_ms": 1, "note": "n" * 200}
        store.record(Judgement(item_id=item["item_id"], labeler=labeler, event_id=event, **fields))
        if number % 7 == 6:
            store.undo(labeler, "pair", event_id=f"{event}-undone")
            event = f"{event}-undone"
        os.write(1, f"{event}\n".encode())


def main(path: str, kills: int) -> dict:
    """Kill `kills` writers; what they were told is saved, and what of it is missing."""
    generator, acknowledged = random.Random(0), []
    # A forked child starts at once; each is killed at its own random moment after its first word.
    for number in range(kills):
        read, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.dup2(write_end, 1)
            try:
                write(path, f"labeler-{number}")
            finally:
                os._exit(1)
        os.close(write_end)
        with os.fdopen(read) as lines:
            first = lines.readline()
            time.sleep(generator.uniform(0, LONGEST))
            os.kill(child, 9)
            os.waitpid(child, 0)
            told = [first, *lines.readlines()]
        acknowledged += [line.strip() for line in told if line.endswith("\n")]
    database = sqlite3.connect(path)
    stored = {event for (event,) in database.execute("SELECT event_id FROM judgement")}
    integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
    lost = len(set(acknowledged) - stored)
    return {"kills": kills, "acknowledged": len(acknowledged), "lost": lost, "integrity": integrity}


if __name__ == "__main__":
    import workbench.feedback.store  # once, before the children are forked  # noqa: F401

    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
