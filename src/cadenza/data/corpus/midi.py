"""A writer of Standard MIDI Files in which one tick is one millisecond."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

DRUM_CHANNEL = 9
VOLUME, PAN, SOUND_OFF, RESET = 7, 10, 120, 121


@dataclass(frozen=True, order=True)
class Event:
    """Bytes of one channel message at a time in milliseconds; ties keep the order of rank."""

    tick: int
    rank: int
    data: bytes


def note_on(tick: int, channel: int, pitch: int, velocity: int) -> Event:
    """The start of a note."""
    return Event(tick, 3, bytes((0x90 | channel, pitch, velocity)))


def note_off(tick: int, channel: int, pitch: int) -> Event:
    """The end of a note, which precedes starts at the same time."""
    return Event(tick, 1, bytes((0x80 | channel, pitch, 0)))


def program(tick: int, channel: int, number: int) -> Event:
    """A change of instrument."""
    return Event(tick, 2, bytes((0xC0 | channel, number)))


def control(tick: int, channel: int, number: int, value: int) -> Event:
    """A controller's new value."""
    return Event(tick, 0, bytes((0xB0 | channel, number, value)))


def _quantity(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(0x80 | (value & 0x7F))
    return bytes(reversed(groups))


def smf(events: Iterable[Event], end: int) -> bytes:
    """A one-track file of 500 ticks a beat at 120 beats a minute that ends at a given tick."""
    track = bytearray(b"\x00\xff\x51\x03" + (500_000).to_bytes(3, "big"))
    now = 0
    for event in sorted(events):
        track += _quantity(event.tick - now) + event.data
        now = event.tick
    track += _quantity(max(0, end - now)) + b"\xff\x2f\x00"
    header = b"MThd" + struct.pack(">IHHH", 6, 0, 1, 500)
    return header + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)
