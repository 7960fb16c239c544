"""Mu-law (invariant 13), WAV files, chorales as tokens, and MIDI files parsed back by hand."""

import numpy as np
import pytest
from scipy.io import wavfile

from common.errors import UserError
from papers.sparse_transformer.music import (
    CHORALE_VOCABULARY,
    chorale_tokens,
    chorales_of_tokens,
    decode_mu_law,
    encode_mu_law,
    midi_bytes,
    read_wav,
    write_midi,
    write_wav,
)

PIECE = np.array([[72, 67, 64, 48], [72, 65, -1, 48], [74, 65, -1, 48], [-1, 65, 60, 43]])


def test_invariant_13_mu_law():
    samples = np.array([-1, -0.5, -0.01, 0, 0.01, 0.5, 1])
    assert encode_mu_law(samples).tolist() == [0, 16, 98, 128, 157, 239, 255]
    assert decode_mu_law(np.array(239)) == pytest.approx(0.496677, abs=1e-6)
    everything = np.arange(256)
    assert (encode_mu_law(decode_mu_law(everything)) == everything).all()
    assert encode_mu_law(np.array([-3.0, 3.0])).tolist() == [0, 255]


def test_wav_there_and_back(tmp_path):
    samples = np.sin(np.arange(1200) / 10) * 0.7
    write_wav(tmp_path / "a.wav", samples)
    rate, stored = wavfile.read(tmp_path / "a.wav")
    assert rate == 12_000 and stored.dtype == np.int16 and stored.shape == (1200,)
    assert np.abs(read_wav(tmp_path / "a.wav") - samples).max() < 1e-4


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_every_sample_format_is_read_as_mono_at_the_rate(dtype, tmp_path):
    tone = np.sin(2 * np.pi * 440 * np.arange(24_000) / 48_000) * 0.5
    stereo = np.stack([tone, np.zeros_like(tone)], 1)
    if dtype is np.uint8:
        stored = (stereo * 127 + 128).round().astype(np.uint8)
    elif dtype is np.float32:
        stored = stereo.astype(np.float32)
    else:
        stored = (stereo * np.iinfo(dtype).max).astype(dtype)
    wavfile.write(tmp_path / "tone.wav", 48_000, stored)
    samples = read_wav(tmp_path / "tone.wav")
    assert samples.dtype == np.float32 and samples.shape == (6000,)
    wanted = np.sin(2 * np.pi * 440 * np.arange(6000) / 12_000) * 0.25
    assert np.abs(samples - wanted)[100:-100].max() < 0.012


def test_what_is_no_wav_file_is_one_line(tmp_path):
    path = tmp_path / "x.wav"
    with pytest.raises(UserError, match=r"x.wav does not exist"):
        read_wav(path)
    path.write_bytes(b"RIFF nothing")
    with pytest.raises(UserError, match=r"x.wav cannot be read as a WAV file \(.*\): get a fresh copy"):
        read_wav(path)
    wavfile.write(path, 12_000, np.zeros(0, np.int16))
    with pytest.raises(UserError):
        read_wav(path)
    wavfile.write(path, 12_000, np.array([0, np.nan], np.float32))
    with pytest.raises(UserError, match="no finite numbers"):
        read_wav(path)


def test_chorales_as_tokens():
    tokens = chorale_tokens([PIECE, PIECE[:1]])
    assert tokens.dtype == np.uint8 and len(tokens) == 4 * (len(PIECE) + 1 + 1 + 1)
    assert tokens[:8].tolist() == [53, 48, 45, 29, 53, 46, 1, 29] and tokens[16:20].tolist() == [0] * 4
    assert chorale_tokens([np.array([[108, 21, -1, -1]])]).max() == CHORALE_VOCABULARY - 1
    back = chorales_of_tokens(tokens)
    assert len(back) == 2 and (back[0] == PIECE).all() and (back[1] == PIECE[:1]).all()
    # A sampled sequence may end anywhere.
    assert (chorales_of_tokens(tokens[:10])[0] == PIECE[:2]).all() and chorales_of_tokens(tokens[16:20]) == []
    for wrong in ([[1, 2, 3, 4]], [[60, 60, 60]], [[60, 60, 60, -2]], [[60, 60, 60, 109]]):
        with pytest.raises(ValueError, match=r"pitches|chorale"):
            chorale_tokens([np.array(wrong)])


def parse_midi(data: bytes) -> tuple[tuple[int, int, int], list[list[tuple[int, bytes]]]]:
    """(format, tracks, division) and the events of each track as (tick, status and data bytes)."""
    assert data[:8] == b"MThd\0\0\0\x06"
    header = tuple(int.from_bytes(data[i : i + 2], "big") for i in (8, 10, 12))
    tracks, at = [], 14
    while at < len(data):
        assert data[at : at + 4] == b"MTrk"
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "big")
        at, tick, events = at + 8, 0, []
        while at < end:
            delta = 0
            while True:
                delta, at = delta << 7 | data[at] & 127, at + 1
                if data[at - 1] < 128:
                    break
            tick += delta
            length = 3 + data[at + 2] if data[at] == 0xFF else 2 if data[at] >> 4 == 0xC else 3
            events.append((tick, data[at : at + length]))
            at += length
        assert events[-1][1] == b"\xff\x2f\x00"
        tracks.append(events)
    return header, tracks


def test_midi_parsed_back(tmp_path):
    write_midi(tmp_path / "a.mid", PIECE)
    header, tracks = parse_midi((tmp_path / "a.mid").read_bytes())
    assert header == (1, 5, 480) and len(tracks) == 5
    assert tracks[0][0] == (0, b"\xff\x51\x03" + (750_000).to_bytes(3, "big"))
    soprano = [(tick, event[0] >> 4, event[1]) for tick, event in tracks[1][1:-1]]
    assert soprano == [(0, 9, 72), (240, 8, 72), (240, 9, 74), (360, 8, 74)]
    tenor = [(tick, event[0], event[1]) for tick, event in tracks[3][1:-1]]
    assert tenor == [(0, 0x92, 64), (120, 0x82, 64), (360, 0x92, 60), (480, 0x82, 60)]
    bass = [(tick, event[1]) for tick, event in tracks[4][1:-1]]
    assert bass == [(0, 48), (360, 48), (360, 43), (480, 43)]


def test_long_notes_need_two_bytes_of_time():
    _, tracks = parse_midi(midi_bytes(np.full((200, 4), 60)))
    assert [tick for tick, _ in tracks[1]] == [0, 0, 24_000, 24_000]
