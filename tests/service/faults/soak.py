"""`python -m tests.service.faults.soak --minutes N --seed S`: random faults of many rows at once, then the checker.

On a private PostgreSQL, with Ray's stand-in. Clients order and cancel all the time; every few seconds something is
killed, stopped, cut off, set to another time or made to forget. At the end all is healed, and all must hold. What is
done follows from the seed; what comes of it also from the machine.
"""

import argparse
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from service.interrupts import terminable
from service.states import TERMINAL
from tests.service import postgres as server
from tests.service.faults.invariants import check
from tests.service.faults.proxy import Proxy
from tests.service.faults.service_process import NOWHERE
from tests.service.faults.world import Member, World, undisturbed, world

_PLACES = ("before_intent", "after_intent", "after_spec", "after_submit", "after_record", "before_ingest", "mid_cancel")
_CLIENTS = 5


class Soak:
    """An installation, and what is done to it."""

    def __init__(self, installation: World, postgres: Path, ray: Proxy, database: Proxy, seed: int) -> None:
        self.world = installation
        self.postgres = postgres
        self.ray = ray
        self.database = database
        self.chance = random.Random(seed)
        self.heads = 1
        self.over = threading.Event()
        behind = f"postgresql+psycopg://postgres@127.0.0.1:{database.port}/simpo"
        self._behind = replace(installation.settings, ray_jobs_url=f"http://127.0.0.1:{ray.port}", database_url=behind)
        self.api = self._start_api()
        self.reconcilers = [self._start_reconciler(), self._start_reconciler()]

    def run(self, minutes: float) -> None:
        """Faults for so long."""
        faults: list[Callable[[], None]] = [
            self.kill_api,
            self.kill_reconciler,
            self.kill_at_a_place,
            self.freeze_reconciler,
            self.lose_head,
            self.lose_head_and_drivers,
            self.kill_driver,
            self.cut_ray,
            self.cut_database,
            self.crash_database,
            self.set_clocks,
            self.lose_answers,
        ]
        ends = time.monotonic() + 60 * minutes
        begun = time.monotonic()
        while time.monotonic() < ends:
            fault = self.chance.choice(faults)
            print(f"{time.monotonic() - begun:7.1f} s  {fault.__name__}", flush=True)
            fault()
            time.sleep(self.chance.uniform(0.2, 3.0))

    def client(self, number: int) -> None:
        """Orders one sweep after another, insisting, and looks until it is over; cancels every third."""
        n = 0
        while not self.over.is_set():
            sweep_id = self.world.post_sweep(self.api, f"c{number}-{n}")
            self.over.wait(1.0)
            if n % 3 == 2:
                self.world.cancel(self.api, sweep_id)
            while not self.over.wait(1.0):
                shown = self.world.history.ask(self.api.url, "GET", f"/v1/sweeps/{sweep_id}", patience_s=5)
                if shown.status == 200 and shown.answer["state"] in TERMINAL:
                    break
            n += 1

    def heal(self) -> None:
        """Nothing is disturbed any more."""
        self.ray.become("open")
        self.database.become("open")
        self.world.ray.script()
        for clock in ("api-clock", "reconciler-clock"):
            self.world.set_clock(clock, 0)

    def kill_api(self) -> None:
        self.api.kill()
        self.api = self._start_api()

    def kill_reconciler(self) -> None:
        place = self.chance.randrange(2)
        self.reconcilers[place].kill()
        self.reconcilers[place] = self._start_reconciler()

    def kill_at_a_place(self) -> None:
        place = self.chance.randrange(2)
        self.reconcilers[place].kill()
        doomed = self._start_reconciler(self.chance.choice(_PLACES))
        doomed.process.join(5)
        doomed.kill()
        self.reconcilers[place] = self._start_reconciler()

    def freeze_reconciler(self) -> None:
        frozen = self.chance.choice(self.reconcilers)
        frozen.signal(signal.SIGSTOP)
        time.sleep(self.chance.uniform(1.0, 6.0))
        frozen.signal(signal.SIGCONT)

    def lose_head(self) -> None:
        self.heads += 1
        self.world.ray.kill()
        time.sleep(self.chance.uniform(0.0, 2.0))
        self.world.ray.start()

    def lose_head_and_drivers(self) -> None:
        self.heads += 1
        self.world.ray.kill()
        self.world.kill_drivers()
        self.world.ray.start()

    def kill_driver(self) -> None:
        self.world.kill_drivers()

    def cut_ray(self) -> None:
        self.ray.become(self.chance.choice(["refuse", "swallow", "one-way", "slow"]))
        time.sleep(self.chance.uniform(0.5, 5.0))
        self.ray.become("open")

    def cut_database(self) -> None:
        self.database.become(self.chance.choice(["refuse", "swallow", "one-way"]))
        time.sleep(self.chance.uniform(0.5, 5.0))
        self.database.become("open")

    def crash_database(self) -> None:
        server.stop(self.postgres)
        time.sleep(self.chance.uniform(0.0, 3.0))
        server.start(self.postgres)

    def set_clocks(self) -> None:
        for clock in ("api-clock", "reconciler-clock"):
            self.world.set_clock(clock, self.chance.choice([0, 3600, -3600, 172_800, -172_800]))

    def lose_answers(self) -> None:
        manners = [self.chance.choice(["lost", "unsaid", "slow", "late"]) for _ in range(4)]
        self.world.ray.script(*manners, patience_s=2.0)

    def _start_api(self) -> Member:
        return self.world.api(settings=self._behind, clock="api-clock")

    def _start_reconciler(self, place: str = NOWHERE) -> Member:
        return self.world.reconciler(place, settings=self._behind, clock="reconciler-clock", ray_timeout_s=2.0)


def main() -> None:
    """Print the seed, soak, check."""
    words = argparse.ArgumentParser()
    words.add_argument("--minutes", type=float, default=30)
    words.add_argument("--seed", type=int, default=int(time.time()))
    given = words.parse_args()
    print(f"seed {given.seed}", flush=True)
    with terminable(), ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="soak"))
        for name in ("undisturbed", "world"):
            (home / name).mkdir()
        like = undisturbed(home / "undisturbed")
        postgres = stack.enter_context(server.private_postgres())
        settings = {"max_running_sweeps": 3, "max_attempts": 1000, "heartbeat_hung_s": 10.0}
        made = stack.enter_context(world(home / "world", server.fresh_database(postgres), **settings))
        (made.home / "step_s").write_text("0.3")
        ray = stack.enter_context(Proxy(("127.0.0.1", made.ray.port)))
        database = stack.enter_context(Proxy(postgres / ".s.PGSQL.5432"))
        soak = Soak(made, postgres, ray, database, given.seed)
        with ThreadPoolExecutor(_CLIENTS) as pool:
            clients = [pool.submit(soak.client, number) for number in range(_CLIENTS)]
            try:
                soak.run(given.minutes)
            finally:
                soak.over.set()
                soak.heal()
            for client in clients:
                client.result(600)
        made.settle(600)
        check(made, like=like, heads=soak.heads)
        print(f"seed {given.seed}: {len(made.history.calls)} requests, {len(set(made.ray.created()))} jobs, all holds")
    shutil.rmtree(home)  # of one that fails it stays, logs and all


if __name__ == "__main__":
    main()
