"""What all resources share: pages, ETags, idempotency; pure where it can be."""

import pytest
from console_site import ConsoleSite
from hypothesis import given
from hypothesis import strategies as st

from fleet.web.rest import Page, cursor, page_of
from protocol.errors import InvalidError


@given(st.lists(st.text(alphabet="abc-19", min_size=1), unique=True), st.integers(1, 5))
def test_pages_give_every_item_once_and_in_order(items: list[str], limit: int):
    seen: list[str] = []
    page = Page(limit, None)
    while True:
        found = page.take(items, str)
        seen += found[:limit]
        if len(found) <= limit:
            break
        page = page_of(limit, cursor(found[limit - 1]))
    assert seen == items


@pytest.mark.parametrize("text", ["€", "_", "////"])
def test_a_next_that_is_not_ours_is_refused_by_name(text: str):
    with pytest.raises(InvalidError, match="next"):
        page_of(10, text)


def test_a_list_names_its_next_page_twice_and_ends(console: ConsoleSite):
    admin = console.api("pager", "admin", "viewer")
    for number in range(5):
        console.person(f"paged-{number}", "viewer")
    first = admin.get("/users", params={"limit": 2})
    assert len(first.json()["items"]) == 2
    assert first.json()["next"] in first.headers["link"]
    names: list[str] = []
    after: str | None = None
    while True:
        answer = admin.get("/users", params={"limit": 2, **({"next": after} if after else {})}).json()
        names += [user["name"] for user in answer["items"]]
        after = answer["next"]
        if after is None:
            break
    assert names == sorted(names)
    assert {f"paged-{number}" for number in range(5)} <= set(names)
    assert admin.get("/users", params={"limit": 501}).status_code == 422


def test_a_change_needs_the_revision_it_was_made_against(console: ConsoleSite):
    operator = console.api("editor", "operator")
    assert operator.post("/groups", json={"name": "cold", "description": "one"}).status_code == 201
    without = operator.patch("/groups/cold", json={"description": "two"})
    assert (without.status_code, without.json()["type"]) == (428, "urn:mooring:problem:precondition-required")
    etag = operator.get("/groups/cold").headers["etag"]
    assert operator.patch("/groups/cold", json={"description": "two"}, headers={"If-Match": etag}).status_code == 200
    stale = operator.patch("/groups/cold", json={"description": "three"}, headers={"If-Match": etag})
    assert (stale.status_code, stale.json()["type"]) == (412, "urn:mooring:problem:precondition-failed")
    assert operator.patch("/groups/cold", json={"description": "3"}, headers={"If-Match": '"x"'}).status_code == 422
    assert operator.get("/groups/cold").json()["description"] == "two"


def test_a_repeated_key_gets_the_first_answer_and_does_nothing_twice(console: ConsoleSite):
    operator = console.api("repeater", "operator")
    body = {"line": "twice", "version": "1.0", "models": [{"model_id": "no-such-model"}]}
    headers = {"Idempotency-Key": "key-1"}
    refused = operator.post("/releases", json=body, headers=headers)
    assert refused.status_code == 404
    # what failed may be tried again with the same key
    assert operator.post("/releases", json=body, headers=headers).status_code == 404


def test_a_body_with_an_unknown_key_is_refused_and_the_place_is_named(console: ConsoleSite):
    operator = console.api("typist", "operator")
    answer = operator.post("/groups", json={"name": "x", "colour": "red"})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/body/colour"
