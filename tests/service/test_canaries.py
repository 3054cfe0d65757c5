"""Roll-outs: a candidate takes its share and no more, becomes the champion or is taken back; bad ones never answer."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from service.canary_watch import candidate
from service.context import Context
from service.models import Event
from service.models_canaries import CanaryCounts
from service.serving.arms import Arms
from service.serving.counts import Counts
from service.serving.declared import DesiredDeployment, project_of, refuse_duplicates, route_prefix, variant_of
from service.settings import Settings
from simpo.errors import ConfigError
from tests.service.conftest import Plane, make_plane
from tests.service.test_deployments import deploy, succeeded
from tests.service.test_inference import CHAT, Broken, Chunks, Serve, said

Answer = Callable[[httpx.Request], httpx.Response]


class TwoVersions(Serve):
    """Ray Serve's proxy with a champion and a candidate, each answering what the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.champion: Answer = lambda request: completion("a b c")
        self.candidate: Answer = lambda request: completion("d e f")

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return (self.candidate if "~" in request.url.path else self.champion)(request)


def completion(text: str, finish_reason: str = "stop") -> httpx.Response:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return said(200, {"object": "chat.completion", "choices": [choice]})


def nothing(request: httpx.Request) -> httpx.Response:
    """Serve's own words: there is no replica."""
    return httpx.Response(503, text="no replica")


def half(request: httpx.Request) -> httpx.Response:
    """A replica that ends in the middle of a whole answer."""
    return httpx.Response(200, headers={"content-type": "application/json"}, stream=Broken(httpx.ReadError("reset")))


@pytest.fixture
def serve() -> TwoVersions:
    return TwoVersions()


@pytest.fixture
def served(settings: Settings, serve: TwoVersions) -> Iterator[Plane]:
    """A plane with the deployment `best` READY."""
    for plane in make_plane(settings, serve=serve):
        deploy(plane, succeeded(plane))
        plane.turn()
        yield plane


def path(plane: Plane) -> str:
    """Of the one deployment."""
    (row,) = plane.client.get("/v1/deployments").json()["data"]
    return f"/v1/deployments/{row['id']}"


def canary(plane: Plane, *, turns: int = 2, **wish: Any) -> dict[str, Any]:
    """A candidate, as it is after so many passes."""
    (row,) = plane.client.get("/v1/deployments").json()["data"]
    answer = plane.client.post(f"{path(plane)}/canary", json={"sweep": row["sweep"], "checkpoint": "trl_0000", **wish})
    assert answer.status_code == 202, answer.text
    plane.turn(turns)
    shown: dict[str, Any] = plane.client.get(f"{path(plane)}/canary").json()
    return shown


def ask(plane: Plane, number: int = 1, **more: Any) -> Counter[str]:
    """Texts of so many answers."""
    texts: Counter[str] = Counter()
    for _ in range(number):
        answer = plane.client.post("/v1/chat/completions", json={**CHAT, **more})
        assert answer.status_code == 200, answer.text
        texts[answer.json()["choices"][0]["message"]["content"]] += 1
    return texts


def judged(plane: Plane) -> dict[str, Any]:
    """The candidate, once what was counted is written down and looked at."""
    context: Context = plane.client.app.state.context  # type: ignore[attr-defined]
    context.gateway.arms.flush()
    plane.turn()
    shown: dict[str, Any] = plane.client.get(f"{path(plane)}/canary").json()
    return shown


def test_a_deployment_shows_who_is_beside_it(served: Plane) -> None:
    served.deployer.ready = False
    before = served.client.get(path(served))
    assert before.json()["candidate"] is None
    canary(served, turns=0, weight=30)
    shown = served.client.get(path(served), headers={"if-none-match": before.headers["etag"]})
    candidate = shown.json()["candidate"]
    assert (candidate["revision"], candidate["state"], candidate["weight"]) == (2, "PENDING", 30)
    assert (candidate["checkpoint"], candidate["ready_at"], candidate["sticky"]) == ("trl_0000", None, False)
    assert shown.json()["revision"] == 1, "the champion is who it was"
    whole = served.client.get(f"{path(served)}/canary").json()
    assert candidate == {name: whole[name] for name in candidate}
    assert served.client.post(f"{path(served)}/abort").status_code == 202
    assert served.client.get(path(served)).json()["candidate"] is None
    assert served.client.get(f"{path(served)}/canary").json()["state"] == "ABORTED", "what is over is read there"


def test_a_candidate_takes_its_share_once_it_is_ready(served: Plane, serve: TwoVersions) -> None:
    served.deployer.ready = False
    first = canary(served, turns=0, weight=100)
    assert (first["state"], first["revision"], first["champion"]) == ("PENDING", 2, 1)
    served.turn()
    assert ask(served, 3) == {"a b c": 3}, "while it loads, the champion answers"
    (champion, candidate) = sorted(served.deployer.declared.values(), key=lambda d: d.revision)
    assert candidate.route_prefix == "/d/best~r2" and candidate.name == champion.name == "best"
    assert candidate.model_path.endswith("trl_0000/checkpoint") and candidate.model_path != champion.model_path
    served.deployer.become(champion.id, "READY")
    served.deployer.become(candidate.id, "READY")
    served.turn()
    assert served.client.get(f"{path(served)}/canary").json()["state"] == "READY"
    assert ask(served, 3) == {"d e f": 3}
    assert serve.requests[-1].url.path == "/d/best~r2/v1/chat/completions"
    assert json.loads(serve.requests[-1].content) == CHAT, "it knows itself by the deployment's name"
    (shown,) = served.client.get("/v1/deployments").json()["data"]
    assert (shown["state"], shown["revision"]) == ("READY", 1)


def test_the_weight_is_edited_and_holds_for_the_next_request(served: Plane) -> None:
    canary(served, weight=0)
    assert ask(served, 3) == {"a b c": 3}
    where = path(served)
    assert served.client.patch(where, json={"weight": 100}).status_code == 428
    assert served.client.patch(where, json={"weight": 100}, headers={"if-match": '"1"'}).status_code == 412
    tag = served.client.get(where).headers["etag"]
    changed = served.client.patch(where, json={"weight": 100}, headers={"if-match": tag})
    assert (changed.status_code, changed.json()["weight"], changed.headers["etag"] != tag) == (200, 100, True)
    assert ask(served, 3) == {"d e f": 3}
    for body, pointer in (({}, "/weight"), ({"weight": 101}, "/weight"), ({"share": 1}, "/share")):
        refused = served.client.patch(where, json=body, headers={"if-match": "*"})
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, pointer)


def test_a_user_sticks_to_one_version_if_asked(served: Plane) -> None:
    canary(served, weight=50, sticky=True)
    # So many that they are of one version once in half a million canaries: the draw is by the canary's id.
    texts = {user: ask(served, 2, user=user) for user in (f"user-{number}" for number in range(20))}
    assert all(len(seen) == 1 for seen in texts.values())
    assert {next(iter(seen)) for seen in texts.values()} == {"a b c", "d e f"}


def test_one_that_does_not_load_never_answers_and_says_why(served: Plane) -> None:
    served.deployer.bad = {d.model_path.replace("trl_0001", "trl_0000") for d in served.deployer.declared.values()}
    shown = canary(served, weight=100)
    assert shown["state"] == "FAILED" and "no model in" in shown["message"] and shown["ended_at"]
    assert ask(served, 2) == {"a b c": 2}
    served.turn()
    assert len(served.deployer.declared) == 1, "it is taken away"
    assert served.events(path(served).rpartition("/")[2])[-1] == "deployment.canary_failed"
    again = canary(served, checkpoint="base")
    assert (again["state"], again["revision"]) == ("READY", 3), "the next one may come"


def test_what_the_candidate_cannot_answer_the_champion_does(served: Plane, serve: TwoVersions) -> None:
    canary(served, weight=100)
    for broken in (nothing, lambda request: said(500, {"error": {"message": "engine"}}), half):
        serve.candidate = broken
        assert ask(served) == {"a b c": 1}
    serve.candidate = lambda request: said(400, {"error": {"message": "n is not supported"}})
    assert served.client.post("/v1/chat/completions", json=CHAT).status_code == 400, "the request's own fault stays"
    figures = judged(served)["figures"]
    assert (figures["candidate"]["answers"], figures["candidate"]["errors"]) == (3, 3)
    assert (figures["champion"]["answers"], figures["champion"]["errors"]) == (3, 0)


def test_promoted_it_answers_all_and_its_checkpoint_becomes_the_champions(served: Plane) -> None:
    canary(served, weight=10)
    served.deployer.ready = False
    answer = served.client.post(f"{path(served)}/promote")
    assert (answer.status_code, answer.json()["state"]) == (202, "PROMOTING")
    served.turn()
    assert ask(served, 4) == {"d e f": 4}, "while the champion's replicas load it"
    assert len(served.deployer.declared) == 2
    served.deployer.ready = True
    for each in served.deployer.declared:
        served.deployer.become(each, "READY")
    served.turn(2)
    assert served.client.get(f"{path(served)}/canary").json()["state"] == "PROMOTED"
    assert ask(served, 2) == {"a b c": 2}
    served.turn()
    (champion,) = served.deployer.declared.values()
    assert (champion.revision, champion.route_prefix) == (2, "/d/best") and "trl_0000" in champion.model_path
    (shown,) = served.client.get("/v1/deployments").json()["data"]
    assert (shown["state"], shown["revision"], shown["checkpoint"]) == ("READY", 2, "trl_0000")


def test_one_call_rolls_back_whatever_is_going_on(served: Plane) -> None:
    where = path(served)
    canary(served, weight=100)
    assert served.client.post(f"{where}/rollback").status_code == 202
    assert ask(served) == {"a b c": 1}, "at once"
    assert served.client.get(f"{where}/canary").json()["state"] == "ROLLED_BACK"
    canary(served, weight=100)
    served.client.post(f"{where}/promote")
    served.turn(3)
    back = served.client.post(f"{where}/rollback").json()
    assert (back["state"], back["reason"], back["revision"]) == ("READY", "ROLLING", 1), "it answers meanwhile"
    served.turn()
    (champion,) = served.deployer.declared.values()
    assert champion.revision == 1 and "trl_0001" in champion.model_path
    assert served.client.get(where).json()["reason"] == "READY"
    refused = served.client.post(f"{where}/rollback")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing_before")
    odd = served.client.post(f"{where}/rollback", json={"revision": 2})
    assert "none of the revisions that were champions here: 3" in odd.json()["errors"][0]["message"]
    assert served.client.post(f"{where}/rollback", json={"revision": 3}).json()["revision"] == 3


def test_abort_takes_it_away_and_promotes_nobody(served: Plane) -> None:
    where = path(served)
    for verb in ("abort", "promote"):
        assert served.client.post(f"{where}/{verb}").json()["code"] == "no_canary"
    assert served.client.get(f"{where}/canary").status_code == 404
    canary(served, weight=100)
    assert served.client.post(f"{where}/canary", json={"sweep": "x"}).status_code in (409, 422)
    assert served.client.post(f"{where}/abort").json()["state"] == "ABORTED"
    assert ask(served) == {"a b c": 1}
    served.turn()
    assert len(served.deployer.declared) == 1


@pytest.mark.parametrize(
    ("text", "finish", "words"),
    [("I am sorry. " * 5, "stop", "repeat themselves"), ("a b", "length", "are cut off")],
)
def test_worse_answers_are_rolled_back_with_both_figures(
    served: Plane, serve: TwoVersions, text: str, finish: str, words: str
) -> None:
    canary(served, weight=50, sticky=True, guard={"min_answers": 5, "max_latency_ratio": None})
    serve.candidate = lambda request: completion(text, finish)
    for user in range(50):
        ask(served, user=f"user-{user}")
    shown = judged(served)
    assert shown["state"] == "ROLLED_BACK" and words in shown["message"]
    figures = shown["verdict"]["figures"]
    assert figures["champion"]["answers"] + figures["candidate"]["answers"] == 50
    assert figures == shown["figures"] and shown["verdict"]["guard"]["min_answers"] == 5
    with served.store.read() as session:
        told = session.scalars(select(Event).where(Event.type == "deployment.canary_rolled_back")).one()
    assert told.level == "error" and told.data["verdict"] == shown["verdict"] and told.data["weight"] == 0
    assert set(ask(served, 3)) == {"a b c"}


def test_streams_that_break_count_as_errors_and_whole_ones_are_looked_at(served: Plane, serve: TwoVersions) -> None:
    canary(served, weight=100, guard=None)

    def stream(*events: str) -> Answer:
        body = [f"data: {event}\n\n".encode() for event in events]
        return lambda request: httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks(body))

    part = {"choices": [{"index": 0, "delta": {"content": "no no no no no no no no no "}, "finish_reason": None}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    for answer in (
        stream(json.dumps(part)),
        stream(json.dumps(part), '{"error":{"message":"it died"}}'),
        stream(json.dumps(part), json.dumps(last), "[DONE]"),
    ):
        serve.candidate = answer
        assert served.client.post("/v1/chat/completions", json={**CHAT, "stream": True}).status_code == 200
    figures = judged(served)["figures"]["candidate"]
    assert (figures["answers"], figures["errors"], figures["probed"]) == (3, 2, 1)
    assert (figures["repetition_rate"], figures["truncation_rate"]) == (1.0, 1.0)
    assert figures["p95_first_event_s"] is not None and figures["p95_answer_s"] is None


def test_sums_are_written_one_after_the_other(served: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stands still between adding up and writing does not write older sums over newer ones."""
    canary(served, weight=100, guard=None)
    arms, write = Arms(served.store, served.clock), served.store.write
    stands, goes_on = threading.Event(), threading.Event()

    @contextmanager
    def stopping() -> Iterator[Any]:
        if not stands.is_set():
            stands.set()
            assert goes_on.wait(300)
        with write() as session:
            yield session

    async def answered() -> None:
        live = await arms.live(path(served).rpartition("/")[2])
        assert live is not None
        arms.note(live, "candidate", Counts(answers=1))

    monkeypatch.setattr(served.store, "write", stopping)
    writers = [threading.Thread(target=arms.flush) for _ in range(2)]
    for writer in writers:
        asyncio.run(answered())
        writer.start()
        assert stands.wait(300)
    writers[1].join(0.2)  # it waits for the first one
    goes_on.set()
    for writer in writers:
        writer.join()
    with served.store.read() as session:
        assert session.scalars(select(CanaryCounts)).one().counts["answers"] == 2


def test_the_version_is_told(served: Plane, serve: TwoVersions) -> None:
    def told(request: httpx.Request) -> httpx.Response:
        answer = completion("d e f")
        answer.headers["x-simpo-version"] = "rev-2"
        return answer

    serve.candidate = told
    canary(served, weight=100)
    assert served.client.post("/v1/chat/completions", json=CHAT).headers["x-simpo-version"] == "rev-2"


def test_a_new_champion_that_does_not_load_leaves_the_old_one_answering(served: Plane) -> None:
    where = path(served)
    canary(served, weight=100)
    served.client.post(f"{where}/promote")
    served.turn(4)
    assert served.client.get(where).json()["revision"] == 2
    served.deployer.bad = {d.model_path.replace("trl_0000", "trl_0001") for d in served.deployer.declared.values()}
    served.client.post(f"{where}/rollback")  # to a checkpoint that is damaged meanwhile
    served.turn(3)
    shown = served.client.get(where).json()
    assert (shown["state"], shown["reason"], shown["revision"]) == ("READY", "ROLLED_BACK", 2)
    assert "revision 1 cannot be loaded: no model in" in shown["message"]
    assert ask(served) == {"a b c": 1}
    (declared,) = served.deployer.declared.values()
    assert declared.revision == 2, "what answers is what is wished for again"
    assert "deployment.rolled_back" in served.events(where.rpartition("/")[2])
    assert served.client.post(f"{where}/rollback").json()["code"] == "nothing_before", "it is not tried again"


def test_a_deleted_deployment_takes_its_candidate_with_it(served: Plane) -> None:
    where = path(served)
    canary(served, weight=100)
    served.client.delete(where, headers={"if-match": "*"})
    served.turn(3)
    assert served.deployer.declared == {}
    assert served.client.get(f"{where}/canary").json()["state"] == "ABORTED"
    assert served.client.get(where).json()["state"] == "DELETED"


def test_a_candidate_shares_the_name_and_nothing_else_with_its_champion() -> None:
    champion = DesiredDeployment(id="dep_1", name="best", model_path="/m", project="prj_1", base="/b")
    other = candidate(champion, 3, "/n")
    assert (other.route_prefix, other.base, other.revision) == ("/d/prj_1/best~r3", None, 3)
    assert (project_of(other.route_prefix), variant_of(other.route_prefix)) == ("prj_1", "r3")
    assert variant_of(route_prefix("best", "prj_1")) is None
    refuse_duplicates([champion, other])
    with pytest.raises(ConfigError, match="prj_1/best~r3 is used by more than one"):
        refuse_duplicates([other, replace(other, id="dep_2")])


@pytest.mark.parametrize(
    ("wish", "pointer"),
    [
        ({}, "/sweep"),
        ({"sweep": "swp_1", "model": "m"}, "/sweep"),
        ({"sweep": "swp_nobody"}, "/sweep"),
        ({"model": "m"}, "/model_version"),
        ({"sweep": "swp_1", "weight": -1}, "/weight"),
        ({"sweep": "swp_1", "guard": {"max_error_rat": 1}}, "/guard/max_error_rat"),
        ({"sweep": "swp_1", "guard": {"max_latency_ratio": 0.5}}, "/guard/max_latency_ratio"),
    ],
)
def test_a_wish_is_honoured_or_refused_by_name(served: Plane, wish: dict[str, Any], pointer: str) -> None:
    answer = served.client.post(f"{path(served)}/canary", json=wish)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)
