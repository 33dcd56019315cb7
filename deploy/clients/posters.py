"""Show a user's posters and tell Pigeon about it; the standard library only.

PIGEON_URL=http://127.0.0.1:8080 PIGEON_TOKEN=... python posters.py u1 m50,m51
"""

from __future__ import annotations

import json
import os
import sys
import urllib.parse
import urllib.request
from typing import Any

URL = os.environ["PIGEON_URL"]


def posters(user: str, items: str) -> list[dict[str, Any]]:
    """What to show the user for the items."""
    where = f"{URL}/v1/users/{urllib.parse.quote(user, safe='')}/posters?" + urllib.parse.urlencode({"items": items})
    asked = urllib.request.Request(where, headers={"Authorization": f"Bearer {os.environ['PIGEON_TOKEN']}"})
    with urllib.request.urlopen(asked, timeout=5) as answer:
        found: list[dict[str, Any]] = json.load(answer)["posters"]
        return found


def tell(*events: dict[str, Any]) -> int:
    """Send feedback; the number of events that Pigeon has."""
    body = json.dumps({"events": events}).encode()
    sent = urllib.request.Request(f"{URL}/v1/feedback", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=15) as answer:
        return int(json.load(answer)["accepted"])


def main() -> None:
    """Show all, click the first one that was drawn."""
    shown = posters(sys.argv[1], sys.argv[2])
    for place, one in enumerate(shown):
        sys.stdout.write(f"{place} {one['item']} {one['source']} {one['image_url']}\n")
    known = [(place, one["showing"]) for place, one in enumerate(shown) if one["showing"]]
    events = [{"showing": showing, "action": "impression", "position": place} for place, showing in known]
    events += [{"showing": showing, "action": "click", "position": place} for place, showing in known[:1]]
    if events:
        sys.stdout.write(f"told: {tell(*events)}\n")


if __name__ == "__main__":
    main()
