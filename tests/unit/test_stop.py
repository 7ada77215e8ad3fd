"""The request to end early."""

from __future__ import annotations

import os
import signal

from dist_embed.parallel.stop import request_stop, stop_on_sigterm, stop_requested


def test_sigterm_is_a_request_within_the_block_and_gone_after_it() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_sigterm():
        assert not stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested()
    assert not stop_requested()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_request_made_before_the_block_counts_in_it() -> None:
    # Under Ray a thread listens for the launcher's request before the worker's task begins.
    request_stop()
    with stop_on_sigterm():
        assert stop_requested()
    assert not stop_requested()
