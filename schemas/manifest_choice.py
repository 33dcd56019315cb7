"""Which poster a user is shown: among the rows of a set, less what is withdrawn, by a stable hash."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from schemas.hashing import unit_interval
from schemas.manifest_shards import Shard
from schemas.manifest_source import ManifestSet
from schemas.manifest_withdrawn import Withdrawn

Source = Literal["tonight", "last_good", "item", "control"]


@dataclass(frozen=True, slots=True)
class PosterChoice:
    """What to show for (user, item).

    `source` is the rung of the ladder: "tonight" (drawn by the night of the manifest), "last_good" (by an earlier one that
    still holds, or read from the set before because the newest cannot be read), "item" (the catalogue's own picture: then
    only `image_uri` is set), "control" (the same, shown to the control group where there is a drawn poster: with a poster_id).
    Send `poster_id` and `propensity` back with the feedback.
    """

    source: Source
    poster_id: str | None = None
    image_key: str | None = None
    image_uri: str | None = None
    variant: int | None = None
    propensity: float | None = None
    """Probability with which this variant was chosen among those that can be shown; of the control group its share."""
    model_version: str | None = None
    synthetic: bool = False
    safety: str | None = None


def choose(
    loaded: ManifestSet, withdrawn: Withdrawn, user_id: str, item_ids: Collection[str], turn: str
) -> dict[str, PosterChoice]:
    """A variant for each of the items that the user has posters of."""
    shard, start, end = loaded.posters_of(user_id)
    if start == end:
        return {}
    chosen: dict[str, int] = {}
    propensities = []
    mine = shard.propensities[start:end].tolist()
    for item_id, places in places_of(shard, start, end, set(item_ids), withdrawn).items():
        shares = [mine[place - start] for place in places]
        number = pick(shares, f"{user_id}\x1f{item_id}\x1f{turn}")
        chosen[item_id] = places[number]
        total = sum(shares)
        # What was done: where a variant is withdrawn, the others share its propensity.
        propensities.append(shares[number] if abs(total - 1) < 1e-6 else shares[number] / total)
    places = pa.array(chosen.values(), pa.int64())
    columns = (
        shard.values(name, places)
        for name in ("drawn_by_run", "poster_id", "image_key", "variant", "model_version", "synthetic", "safety")
    )
    found = {}
    for item_id, propensity, (run, poster_id, image_key, variant, model, synthetic, safety) in zip(
        chosen, propensities, zip(*columns, strict=True), strict=True
    ):
        tonight = run == loaded.ref.run_id and not loaded.is_previous
        found[item_id] = PosterChoice(
            source="tonight" if tonight else "last_good",
            poster_id=poster_id,
            image_key=image_key,
            variant=variant,
            propensity=propensity,
            model_version=model,
            synthetic=synthetic,
            safety=safety,
        )
    return found


def places_of(shard: Shard, start: int, end: int, wanted: set[str], withdrawn: Withdrawn) -> dict[str, list[int]]:
    """The rows of each wanted item among the user's, less what is withdrawn."""
    found: dict[str, list[int]] = {}
    for place, item_id in enumerate(shard.columns["item_id"].slice(start, end - start).to_pylist(), start):
        if item_id in wanted and item_id not in withdrawn.item:
            found.setdefault(item_id, []).append(place)
    if not withdrawn.has_posters:
        return found
    every = pa.array([place for places in found.values() for place in places], pa.int64())
    columns = (shard.values(name, every) for name in ("poster_id", "picture_key", "drawn_by_run"))
    gone = {
        place
        for place, poster, picture, run in zip(every.to_pylist(), *columns, strict=True)
        if poster in withdrawn.poster or picture in withdrawn.picture or run in withdrawn.night
    }
    left = ((item, [place for place in places if place not in gone]) for item, places in found.items())
    return {item: places for item, places in left if places}


def without(table: pa.Table, withdrawn: Withdrawn) -> pa.Table:
    """The rows that are not withdrawn."""
    names = {"user": "user_id", "item": "item_id", "poster": "poster_id", "picture": "picture_key"}
    for kind, column in {**names, "night": "drawn_by_run"}.items():
        subjects = pa.array(sorted(getattr(withdrawn, kind)), pa.string())
        if len(subjects):
            table = table.filter(pc.invert(pc.is_in(table[column], value_set=subjects)))
    return table


def pick(propensities: Sequence[float], key: str) -> int:
    """The number of a variant, with its propensity, by the hash of `key`."""
    point = unit_interval(key.encode("utf-8", "surrogatepass")) * sum(propensities)
    for number, propensity in enumerate(propensities):
        point -= propensity
        if point < 0:
            return number
    return len(propensities) - 1
