"""What each kustomization makes, as one line an object, to be seen in a review.

    python -m tests.k8s.inventory            print it
    python -m tests.k8s.inventory --write    write it into tests/k8s/inventory.txt

A line is the kind, the name, and what people decide by: replicas, images, limits, selectors of policies. So a patch
that removes an object or doubles a group shows as a line of a diff, and not as one of a thousand lines of YAML.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.k8s.lints import HASHED
from tests.k8s.manifests import folders, name_of, pods, render

Json = dict[str, Any]

PATH = Path(__file__).parent / "inventory.txt"


def text() -> str:
    """The whole inventory."""
    lines = []
    for folder in folders():
        lines += [f"# {folder.parent.name}/{folder.name}", *sorted(_lines(render(folder))), ""]
    return "\n".join(lines)


def _lines(objects: list[Json]) -> Iterator[str]:
    for thing in objects:
        name = HASHED.sub("", name_of(thing)) if thing["kind"] == "ConfigMap" else name_of(thing)
        yield " ".join([name, *_facts(thing)])
        for view in pods([thing]):
            for container in view.containers():
                limits = (container.get("resources") or {}).get("limits") or {}
                what = " ".join(f"{key}={limits[key]}" for key in sorted(limits))
                yield f"{view.owner} > {container['name']}: {container['image']} {what}"


def _facts(thing: Json) -> Iterator[str]:
    spec = thing.get("spec") or {}
    for key in ("replicas", "minReplicas", "maxReplicas", "minAvailable", "storageClassName", "suspend"):
        if key in spec:
            yield f"{key}={spec[key]}"
    if thing["kind"] == "NetworkPolicy":
        yield json.dumps(spec["podSelector"], sort_keys=True)
    if thing["kind"] == "ResourceQuota":
        yield json.dumps(spec["hard"], sort_keys=True)
    for group in spec.get("workerGroupSpecs") or []:
        yield f"{group['groupName']}={group.get('replicas', 'auto')}:{group['minReplicas']}-{group['maxReplicas']}"


def main(arguments: list[str]) -> None:
    """Print the inventory, or write it."""
    if "--write" in arguments:
        PATH.write_text(text(), encoding="utf-8")
    else:
        print(text())


if __name__ == "__main__":
    main(sys.argv[1:])
