"""Load reports on their way from the engine's thread to the global scheduler, which may be away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from llumnix.cluster.real.calls import CallLink
from llumnix.cluster.real.messages import Address, LinkError
from llumnix.load import InstanceLoad

log = logging.getLogger(__name__)
RETRY_S = 0.2
"""How long to wait before the scheduler is looked for again."""
CONNECT_S = 1.0
REST_S = 0.1
"""How long the rest of a report may take of which the connection has taken the first part."""


class Reports:
    """`find` says where the scheduler takes calls, or raises LinkError.

    A report that cannot leave at once is dropped, since a later one will say more; of those that come while the
    scheduler is away the last is kept for it.
    """

    def __init__(self, find: Callable[[], Address], retry_s: float = RETRY_S) -> None:
        self._find = find
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._link: CallLink | None = None
        self._kept: InstanceLoad | None = None
        self._seeks = False

    def send(self, load: InstanceLoad) -> None:
        """Send a report. Never waits; not for several threads at a time."""
        with self._lock:
            link = self._link
            if link is None:
                self._keep(load)
                return
        try:
            link.tell("report", REST_S, load)
        except LinkError as error:
            log.debug("the global scheduler has gone: %s", error)
            link.close()
            with self._lock:
                self._link = None
                self._keep(load)

    def _keep(self, load: InstanceLoad) -> None:
        self._kept = load
        if not self._seeks:
            self._seeks = True
            threading.Thread(target=self._seek, name="reports", daemon=True).start()

    def _seek(self) -> None:
        """Look for the scheduler until it is there, and give it what was kept."""
        while True:
            try:
                link = CallLink(self._find())
                link.open(CONNECT_S)
                with self._lock:
                    link.tell("report", REST_S, self._kept)
                    self._link, self._kept, self._seeks = link, None, False
                    return
            except LinkError as error:
                log.debug("the global scheduler is away: %s", error)
                time.sleep(self._retry_s)
