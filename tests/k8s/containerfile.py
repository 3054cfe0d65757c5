"""Containerfiles, parsed and linted, with rules like hadolint's (its numbers stand where it has the same one).

Each rule takes a file and answers sentences. `RULES` lists them; each has a failing example in `test_images.py`.
"""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

Rule = Callable[["Containerfile"], Iterator[str]]

_SECRET = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|API_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_URL = re.compile(r"https?://|ftp://|git@")
_ARG_USE = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction, continued lines joined."""

    word: str
    """In capitals."""
    text: str
    """What follows it."""
    stage: int
    """-1 before the first FROM, then 0, 1 ..."""

    @property
    def flags(self) -> dict[str, str]:
        """--name=value before the rest."""
        words = self.text.split()
        taken = words[: next((i for i, word in enumerate(words) if not word.startswith("--")), len(words))]
        return {name.lstrip("-"): value for name, _, value in (word.partition("=") for word in taken)}

    @property
    def commands(self) -> list[list[str]]:
        """The commands of a RUN, as words."""
        parts = re.split(r"&&|\|\||;|\|", self.text)
        return [shlex.split(part, posix=False) for part in parts if part.strip() and part.count("'") % 2 == 0]


@dataclass(frozen=True, kw_only=True)
class Containerfile:
    """A parsed file."""

    text: str
    """Its content."""

    @cached_property
    def instructions(self) -> list[Instruction]:
        """In order, without comments."""
        lines = [line for line in self.text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        joined = re.sub(r"\\\n", " ", "\n".join(lines)).splitlines()
        found, stage = [], -1
        for line in joined:
            word, _, rest = line.strip().partition(" ")
            stage += word.upper() == "FROM"
            found.append(Instruction(word=word.upper(), text=rest.strip(), stage=stage))
        return found

    def all(self, *words: str) -> list[Instruction]:
        """The instructions with one of these words."""
        return [instruction for instruction in self.instructions if instruction.word in words]

    @property
    def last_stage(self) -> list[Instruction]:
        """What makes the image itself."""
        stage = self.instructions[-1].stage
        return [instruction for instruction in self.instructions if instruction.stage == stage]

    def installs(self) -> list[list[str]]:
        """The words of each `pip install`, from `install` on."""
        commands = [command for run in self.all("RUN") for command in run.commands]
        return [c[c.index("install") :] for c in commands if "install" in c and any("pip" in word for word in c[:4])]


def pinned_base(file: Containerfile) -> Iterator[str]:
    """FROM has a digest, or an argument without a default that the build refuses without one (DL3006, DL3007)."""
    defaults = {a.text.partition("=")[0]: a.text.partition("=")[2] for a in file.all("ARG") if a.stage == -1}
    names = {"scratch"}
    for instruction in file.all("FROM"):
        words = [word for word in instruction.text.split() if not word.startswith("--")]
        use = _ARG_USE.fullmatch(words[0])
        checked = use and f'"${{{use[1]}}}" in' in file.text and "*@sha256:*)" in file.text
        if use and defaults.get(use[1]):
            yield f"FROM {words[0]}: the argument must have no default, or a base is chosen silently"
        elif use and not checked:
            yield f"FROM {words[0]}: a RUN must refuse a value without @sha256:"
        elif not use and words[0] not in names and not re.search(r"@sha256:[0-9a-f]{64}$", words[0]):
            yield f"FROM {words[0]}: needs a digest"
        names.add(words[-1])


def several_stages(file: Containerfile) -> Iterator[str]:
    """What builds stays behind: more than one stage, and no pip in the last."""
    if len(file.all("FROM")) < 2:
        yield "needs a stage that builds and a stage that runs"
    for run in file.last_stage:
        if run.word == "RUN" and "pip install" in run.text:
            yield "pip install belongs in the stage that builds"


def non_root(file: Containerfile) -> Iterator[str]:
    """The last USER is a number and not root (DL3002); a name could not be checked by runAsNonRoot."""
    users = [instruction.text for instruction in file.last_stage if instruction.word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield f"USER must be a number above 0, not {users[-1] if users else 'root'}"


def no_add(file: Containerfile) -> Iterator[str]:
    """COPY instead of ADD (DL3020), and no address in either: what is fetched is not what was reviewed."""
    for instruction in file.all("ADD"):
        yield f"ADD {instruction.text}: use COPY"


def owned_copies(file: Containerfile) -> Iterator[str]:
    """COPY into the image says who owns the files."""
    for instruction in file.last_stage:
        if instruction.word == "COPY" and "chown" not in instruction.flags:
            yield f"COPY {instruction.text}: needs --chown"


def lean_apt(file: Containerfile) -> Iterator[str]:
    """apt-get: update, -y, --no-install-recommends, lists removed, all in one RUN (DL3009, DL3014, DL3015, DL3027)."""
    for run in file.all("RUN"):
        for command in run.commands:
            if command[:1] == ["apt"]:
                yield "apt is for people: use apt-get"
        if "apt-get install" in run.text:
            for wanted in ("apt-get update", "-y", "--no-install-recommends", "rm -rf /var/lib/apt/lists/*"):
                if wanted not in run.text:
                    yield f"apt-get install: needs {wanted} in the same RUN"


def no_secrets(file: Containerfile) -> Iterator[str]:
    """No secret in ENV, ARG or LABEL: every layer keeps them."""
    for instruction in file.all("ENV", "ARG", "LABEL"):
        for name in re.findall(r"(?:^|\s)([\w.]+)(?==|$|\s)", re.sub(r'"[^"]*"', "", instruction.text)):
            if _SECRET.search(name):
                yield f"{instruction.word} {name}: secrets are mounted, not built in"


def constrained_pip(file: Containerfile) -> Iterator[str]:
    """pip without a cache (DL3042), with our constraints (DL3013), from no place that is named here."""
    for install in file.installs():
        line = " ".join(install)
        if "--no-cache-dir" not in install:
            yield f"pip {line}: needs --no-cache-dir"
        if not re.search(r"(-c|--constraint)[ =]constraints\.txt", line):
            yield f"pip {line}: needs -c constraints.txt"
        if re.search(r"--(extra-)?index-url|--trusted-host|\s-i\s", line) or _URL.search(line):
            yield f"pip {line}: takes packages from where the builder's configuration says, not from here"


def pipefail(file: Containerfile) -> Iterator[str]:
    """Each stage with a RUN that pipes or substitutes stops at the first failure (DL4006)."""
    for stage in sorted({instruction.stage for instruction in file.all("RUN")}):
        shells = [i.text for i in file.all("SHELL") if i.stage == stage]
        if not shells or "pipefail" not in shells[-1]:
            yield f"stage {stage}: needs SHELL with pipefail"


def no_remote_scripts(file: Containerfile) -> Iterator[str]:
    """No script or program fetched and run, and no sudo (DL3004)."""
    for run in file.all("RUN"):
        if re.search(r"\b(curl|wget)\b[^&;]*https?://", run.text) or re.search(r"\bsudo\b", run.text):
            yield f"RUN {run.text[:60]}: fetches what nobody reviewed, or becomes root"


def healthcheck(file: Containerfile) -> Iterator[str]:
    """A HEALTHCHECK, or NONE with a comment above that says who asks instead."""
    found = [instruction for instruction in file.last_stage if instruction.word == "HEALTHCHECK"]
    if not found:
        yield "needs a HEALTHCHECK, or NONE and why"
    elif found[-1].text == "NONE" and not re.search(r"^#.*\nHEALTHCHECK NONE", file.text, re.MULTILINE):
        yield "HEALTHCHECK NONE: a comment must say who asks instead"


def exec_form(file: Containerfile) -> Iterator[str]:
    """CMD and ENTRYPOINT as lists (DL3025): a shell in between would swallow the signal to stop."""
    for instruction in file.all("CMD", "ENTRYPOINT"):
        if not instruction.text.startswith("["):
            yield f"{instruction.word} {instruction.text}: must be a list"


def absolute_workdir(file: Containerfile) -> Iterator[str]:
    """WORKDIR is absolute (DL3000), and nobody changes the folder by cd (DL3003)."""
    for instruction in file.all("WORKDIR"):
        if not instruction.text.startswith("/"):
            yield f"WORKDIR {instruction.text}: must be absolute"
    for run in file.all("RUN"):
        if any(command[:1] == ["cd"] for command in run.commands):
            yield "RUN cd: use WORKDIR"


RULES: tuple[Rule, ...] = (
    *(pinned_base, several_stages, non_root, no_add, owned_copies, lean_apt, no_secrets, constrained_pip, pipefail),
    *(no_remote_scripts, healthcheck, exec_form, absolute_workdir),
)
