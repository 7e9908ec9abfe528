"""An ingest worker as a process of its own, to be killed: `python ingest_process.py OPTIONS.json`; says on stdout when it is connected.

Like the server's own workers it is started again when it fails, and says so. SIGUSR1: it prints what each of its threads does.
"""

import faulthandler
import json
import signal
import sys
import threading
from pathlib import Path

from fleet.broker import INGEST, ClientFiles, client_tls
from fleet.bus import Bus, BusOptions, ingest_subscriptions
from fleet.db import Database
from fleet.monitoring.ingest import IngestRules, IngestWorker
from fleet.supervision import supervise
from protocol.clock import SystemClock


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(options: dict[str, str]) -> None:
    faulthandler.register(signal.SIGUSR1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    files = ClientFiles(Path(options["ca"]), Path(options["certificate"]), Path(options["key"]))
    database = Database(options["database"])
    wanted = ingest_subscriptions(share=options["share"])
    rules = IngestRules(is_enrolled=lambda _tx, _tenant, devices: set(devices))

    def work() -> None:
        bus = Bus(BusOptions(options["broker"], INGEST, client_tls(files), wanted, int(options["session_s"])))
        bus.on_connected = lambda: say(f"connected session_present={bus.session_present}")
        bus.start()
        try:
            IngestWorker(bus, database, SystemClock(), rules=rules, batch=500).run(stop)
        finally:
            bus.stop()

    supervise("ingest", work, stop)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
