"""Never more threads than cores, nor more runs than devices."""

import pytest

from dipo_pl.commands.study import machine
from dipo_pl.commands.study.machine import devices_of, jobs_at_a_time
from dipo_pl.errors import InputError


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 8)


@pytest.mark.parametrize(("asked", "threads", "each", "devices", "jobs"), [
    (None, 1, 0, 0, 8), (None, 3, 0, 0, 2), (None, 8, 0, 0, 1), (2, 4, 0, 0, 2), (1, 8, 0, 0, 1),
    (None, 1, 1, 4, 4), (None, 1, 2, 4, 2), (None, 4, 1, 4, 2), (3, 1, 1, 4, 3),
])  # fmt: skip
def test_as_many_as_there_is_room_for(asked, threads, each, devices, jobs):
    assert jobs_at_a_time(asked, threads, each, devices) == jobs


@pytest.mark.parametrize(("asked", "threads", "each", "devices", "line"), [
    (3, 3, 0, 0, r"^3 run\(s\) at a time with 3 thread\(s\) each need 9 cores, and there are 8: give fewer --jobs"),
    (None, 9, 0, 0, r"^1 run\(s\) at a time with 9 thread\(s\) each need 9 cores, and there are 8"),
    (3, 1, 2, 4, r"^--jobs 3 with 2 device\(s\) a run needs 6 GPUs, and there are 4"),
    (0, 1, 0, 0, r"^--jobs must be at least 1 \(got 0\)"),
])  # fmt: skip
def test_more_is_refused(asked, threads, each, devices, line):
    with pytest.raises(InputError, match=line):
        jobs_at_a_time(asked, threads, each, devices)


def test_devices_are_those_that_are_visible(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    auto = {"trainer": {"accelerator": "auto", "devices": 1}}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices_of(auto) == (1, ["0", "1", "2"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert devices_of(auto) == (1, ["4", "6"])
    assert devices_of({"trainer": {"accelerator": "gpu", "devices": "auto"}}) == (2, ["4", "6"])
    assert devices_of({"trainer": {"accelerator": "cpu", "devices": 1}}) == (0, [])


def test_a_busy_machine_is_said(monkeypatch, capsys):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (4.1, 0, 0))
    machine.warn_if_busy()
    assert "other processes load this machine (4.1 on 8 cores" in capsys.readouterr().err
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (4.0, 0, 0))
    machine.warn_if_busy()
    assert capsys.readouterr().err == ""
