"""Who draws for a user: the canary for a stable share of the users, the champion for the others."""

from __future__ import annotations

import pytest

from generator.nightly.drawers import Drawer, Drawers

CHAMPION, CANARY = Drawer("nano-1", 1, "w1"), Drawer("nano-2", 2, "w2")
USERS = [f"user-{number}" for number in range(20_000)]


def canary_users(share: float, canary: Drawer = CANARY) -> set[str]:
    drawers = Drawers(CHAMPION, canary, share)
    found = {user: drawers.drawer_for(user) for user in USERS}
    assert set(found.values()) <= {CHAMPION, canary}
    return {user for user, drawer in found.items() if drawer == canary}


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 1.0])
def test_a_canary_draws_for_its_share_of_the_users(share: float) -> None:
    # Four standard deviations of a binomial; at 0 and 1 it is exact.
    tolerance = 4 * (share * (1 - share) / len(USERS)) ** 0.5
    assert len(canary_users(share)) / len(USERS) == pytest.approx(share, abs=tolerance + 1e-12)


def test_the_same_users_every_night_and_more_of_them_with_a_larger_share() -> None:
    assert canary_users(0.1) == canary_users(0.1)
    assert canary_users(0.1) < canary_users(0.2)


def test_another_canary_gets_other_users() -> None:
    both = canary_users(0.1) & canary_users(0.1, Drawer("nano-3", 3, "w3"))
    assert len(both) / len(USERS) == pytest.approx(0.01, abs=0.003)


def test_without_a_canary_the_champion_draws_for_all() -> None:
    drawers = Drawers(CHAMPION, None, 1.0)
    assert {drawers.drawer_for(user) for user in USERS} == {CHAMPION}
