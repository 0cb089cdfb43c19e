"""No check needs a network, and ComfyUI can be made to load as onto a card."""

import socket

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every check here runs without one: whoever connects fails."""

    def refused(*_):
        raise AssertionError("a check asks for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def like_a_card(monkeypatch):
    """ComfyUI loads as onto a card with VRAM of its own; the weights still lie on the CPU."""
    import comfy.model_management as management

    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
