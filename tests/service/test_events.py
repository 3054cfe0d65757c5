"""Events as a list and as a stream: once each, resumable anywhere, cheap for many watchers."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from service import events, rows
from service.sse import read_sse
from service.states import State
from service.stream import DONE, PING, Hub
from tests.service.conftest import Plane

pytestmark = pytest.mark.quick


@pytest.fixture
def over(plane: Plane) -> str:
    """A sweep that succeeded."""
    sweep_id: str = plane.post()["id"]
    plane.turn()
    plane.drive(sweep_id).start().search([0.5]).finish()
    plane.turn()
    return sweep_id


def test_list_and_stream_tell_the_same_and_the_stream_ends(plane: Plane, over: str) -> None:
    listed = plane.client.get(f"/v1/sweeps/{over}/events?limit=200").json()["data"]
    assert [item["id"] for item in listed] == [f"evt_{n:08d}" for n in range(1, len(listed) + 1)]
    for ask in ({"headers": {"accept": "text/event-stream"}}, {"params": {"stream": "true"}}):
        answer = plane.client.get(f"/v1/sweeps/{over}/events", **ask)  # type: ignore[arg-type]
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        *streamed, done = read_sse(answer.text.split("\n"))
        assert [item.json() for item in streamed] == listed
        assert [(item.id, item.event) for item in streamed] == [(item["id"], item["type"]) for item in listed]
        assert (done.event, done.data) == ("done", "{}")


def test_a_stream_resumes_anywhere_without_loss_or_repetition(plane: Plane, over: str) -> None:
    ids = [item["id"] for item in plane.client.get(f"/v1/sweeps/{over}/events?limit=200").json()["data"]]
    path = f"/v1/sweeps/{over}/events?stream=true"
    for place, last in enumerate(ids):
        for answer in (
            plane.client.get(path, headers={"last-event-id": last}),
            plane.client.get(f"{path}&after={last}"),
            plane.client.get(f"{path}&after={ids[0]}", headers={"last-event-id": last}),
        ):
            *rest, done = read_sse(answer.text.split("\n"))
            assert [item.id for item in rest] == ids[place + 1 :] and done.event == "done"


def test_pages_of_events_in_both_orders(plane: Plane, over: str) -> None:
    first = plane.client.get(f"/v1/sweeps/{over}/events?limit=3").json()
    second = plane.client.get(f"/v1/sweeps/{over}/events?limit=3&after={first['next']}").json()
    assert [item["id"][-1] for item in first["data"] + second["data"]] == list("123456")
    newest = plane.client.get(f"/v1/sweeps/{over}/events?limit=1&order=desc").json()["data"]
    assert newest[0]["type"] == "job.succeeded"


@pytest.mark.parametrize("query", ["after=42", "after=evt_x&stream=true", "streaming=true"])
def test_odd_cursors_are_refused(plane: Plane, over: str, query: str) -> None:
    assert plane.client.get(f"/v1/sweeps/{over}/events?{query}").status_code == 422


def test_a_stream_of_nothing_is_not_found(plane: Plane) -> None:
    answer = plane.client.get("/v1/sweeps/swp_x/events?stream=true")
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/problem+json"


def test_events_carry_who_did_it(plane: Plane, over: str) -> None:
    listed = plane.client.get(f"/v1/sweeps/{over}/events?limit=200").json()["data"]
    actors = {item["type"]: item["actor"] for item in listed}
    assert actors["job.queued"].startswith("key_")
    assert (actors["trial.created"], actors["job.succeeded"]) == ("driver", "reconciler")


# -- live


def tell(plane: Plane, sweep_id: str, number: int, *, last: bool = False) -> None:
    """So many new events; the last one with the end of the sweep."""
    with plane.store.write() as session:
        sweep = rows.lock_sweep(session, sweep_id)
        assert sweep is not None
        for n in range(number):
            events.append(session, sweep, "trial.progress", f"line\nbreak {n}", {"step": n}, now=plane.clock.now())
        if last:
            rows.move(session, sweep, State.CANCELLED, "CANCELLED", "", plane.clock.now())


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Every SQL statement of this process."""
    seen: list[str] = []

    def note(conn: object, cursor: object, statement: str, *rest: object) -> None:
        seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield seen
    event.remove(Engine, "before_cursor_execute", note)


def test_two_hundred_watchers_get_everything_for_a_few_queries(plane: Plane, statements: list[str]) -> None:
    sweep_id = plane.post()["id"]
    hub = Hub(plane.store, poll_s=0.02, heartbeat_s=600)
    texts = [""] * 200

    async def watch(number: int) -> None:
        async for text in hub.stream(sweep_id, 0):
            texts[number] += text

    async def all_have(events: int) -> None:
        while min(text.count("id: evt_") for text in texts) < events:
            await asyncio.sleep(0.01)

    async def everybody() -> None:
        async with asyncio.timeout(300):
            watchers = [asyncio.create_task(watch(number)) for number in range(len(texts))]
            await all_have(1)
            statements.clear()
            for batch in range(1, 6):
                await asyncio.to_thread(tell, plane, sweep_id, 3)
                await all_have(1 + 3 * batch)
            await asyncio.to_thread(tell, plane, sweep_id, 1, last=True)
            await asyncio.gather(*watchers)
            await hub.close()

    asyncio.run(everybody())
    assert len(set(texts)) == 1
    seen = list(read_sse(texts[0].split("\n")))
    assert [item.id for item in seen[:-1]] == [f"evt_{n:08d}" for n in range(1, 18)]
    assert json.loads(seen[1].data)["message"] == "line\nbreak 0"
    reads = [statement for statement in statements if "FROM events" in statement]
    assert len(reads) == 6, "one read for each batch, not one for each watcher"


def test_silence_is_filled_with_comments_and_close_ends_without_done(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    hub = Hub(plane.store, poll_s=0.01, heartbeat_s=0.03)

    async def listen() -> list[str]:
        heard = []
        async for text in hub.stream(sweep_id, 1):
            heard.append(text)
            if len(heard) == 3:
                await hub.close()
        return heard

    *heard, hint = asyncio.run(listen())
    assert heard == [PING] * 3 and hint.startswith("retry: ")


def test_a_watcher_that_goes_leaves_nothing_behind(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    hub = Hub(plane.store, poll_s=0.01)

    async def look_and_go() -> None:
        stream = hub.stream(sweep_id, 0)
        assert "job.queued" in await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        assert not hub._channels and hub._poller is not None
        await asyncio.wait_for(hub._poller, 300)  # ends by itself

    asyncio.run(look_and_go())


def test_a_stream_ends_with_its_sweep(plane: Plane) -> None:
    sweep_id = plane.post()["id"]
    hub = Hub(plane.store, poll_s=0.01)

    async def follow() -> list[str]:
        heard: list[str] = []
        async for text in hub.stream(sweep_id, 0):
            heard.append(text)
            if len(heard) == 1:
                await asyncio.to_thread(tell, plane, sweep_id, 450, last=True)
        return heard

    heard = asyncio.run(follow())
    assert heard[-1] == DONE
    assert sum(text.count("id: evt_") for text in heard) == 451
