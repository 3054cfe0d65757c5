"""One page, whole in one answer, on which a person tries two deployments side by side. It asks with the key they enter.

Its policy lets in the one script and the one style that it holds, by their hashes, and lets it talk to this origin
alone. What models say becomes text, never markup.
"""

import base64
import hashlib
import re
from functools import lru_cache
from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

PATH = "/try"
router = APIRouter()


@router.get(PATH, include_in_schema=False)
async def try_page() -> Response:
    """The page. Without a key: there is nothing in it that is anybody's."""
    page, policy = _page()
    headers = {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }
    return Response(page, media_type="text/html; charset=utf-8", headers=headers)


@lru_cache(maxsize=1)
def _page() -> tuple[str, str]:
    """(page, its Content-Security-Policy)."""
    page = resources.files("service").joinpath("web", "try.html").read_text(encoding="utf-8")
    script, style = (_hash_of(page, tag) for tag in ("script", "style"))
    allowed = f"script-src {script}; style-src {style}; connect-src 'self'"
    return page, f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def _hash_of(page: str, tag: str) -> str:
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
