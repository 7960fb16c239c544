"""What all tests share: one thread for torch, and a process to fork from that has imported everything."""

import multiprocessing
from multiprocessing import forkserver

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fork_server() -> None:
    """Start the server that LocalEngine forks its runs from, with the toy imported too: a child costs 0.1 s."""
    from common.engines import PRELOAD

    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOAD, "tests.toy"])
    forkserver.ensure_running()
