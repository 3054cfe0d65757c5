"""The page of two models: whole in one answer, open to nothing but its own script, style and origin."""

import base64
import hashlib
from html.parser import HTMLParser

import pytest

from service.settings import Settings
from tests.service.conftest import Plane, make_plane


class Page(HTMLParser):
    """Elements, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open].append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


@pytest.mark.quick
def test_the_page_needs_nothing_from_elsewhere_and_its_policy_lets_nothing_in(plane: Plane) -> None:
    answer = plane.client.get("/try", headers={"authorization": ""})
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/html; charset=utf-8"
    page = Page(answer.text)
    policy = {
        words[0]: words[1:] for part in answer.headers["content-security-policy"].split(";") if (words := part.split())
    }
    for tag in ("script", "style"):
        (inside,) = page.inside[tag]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == [f"'sha256-{digest}'"]
    assert (
        policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == policy["form-action"] == ["'none'"]
    )
    assert policy["connect-src"] == ["'self'"] and len(policy) == 7
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert not {"src", "href", "style", "action"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")], "the policy would block it"


@pytest.mark.quick
def test_the_script_finds_what_it_asks_for_and_writes_text_alone(plane: Plane) -> None:
    page = Page(plane.client.get("/try").text)
    (script,) = page.inside["script"]
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    asked = {part.split('"')[0] for part in script.split('$("')[1:]}
    asked |= {f"{side}{end}" for side in ("left", "right") for end in ("", "-name", "-turns")}
    assert asked <= ids and ids - asked <= {"buttons", "panes", "temperature", "max_tokens", "seed"}
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"):
        assert markup not in script
    labelled = [tag for tag, _ in page.elements if tag in ("input", "select", "textarea")]
    assert len(labelled) == sum(tag == "label" for tag, _ in page.elements)


@pytest.mark.quick
def test_where_a_gateway_routes_models_there_is_no_page(settings: Settings) -> None:
    for plane in make_plane(settings, proxy_models=False):
        assert plane.client.get("/try").status_code == 404
        assert plane.client.post("/try").status_code == 404
