"""YAML and JSON as people write them: 2e-5 is a number. Light."""

import re
from typing import Any

import yaml


def read_yaml(text: str) -> Any:
    """Values of a YAML or JSON document; 2e-5 is a number. Raises yaml.YAMLError, whose text has the line."""
    return yaml.load(text, Loader=_Yaml)


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 reads 2e-5 as text; every other reader of numbers, and JSON, reads a number."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
