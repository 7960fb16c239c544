"""Music as tokens: recordings as 8-bit mu-law samples (Sec. 7.4), four-part chorales as pitches; WAV and MIDI files.

A chorale is an int array [steps, 4] of MIDI pitches in steps of a sixteenth note, voices in the order soprano, alto,
tenor, bass, -1 where a voice is silent. As tokens, each step is four of them in that order, so a column of an
attention grid with a stride that is a multiple of 4 belongs to one voice; after its last step a piece has a step of
four 0s. The source does not tell a repeated note from a held one, so neither do tokens and MIDI files.
"""

import io
import warnings
import wave
from collections.abc import Iterable, Sequence
from math import gcd
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import write_bytes

RATE = 12_000
"""Samples a second in the paper."""

VOICES = 4
END, SILENCE, FIRST_PITCH = 0, 1, 2
LOWEST, HIGHEST = 21, 108
"""The pitches of a piano, to which all chorales of Boulanger-Lewandowski et al. (2012) keep."""

CHORALE_VOCABULARY = FIRST_PITCH + HIGHEST - LOWEST + 1
TICKS = 120
"""MIDI ticks of a sixteenth note, 480 of a quarter."""


def encode_mu_law(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] (others are clipped), float [...], as uint8 [...]: y = sign(x) ln(1 + 255|x|) / ln 256, in
    256 equal steps (spec 9)."""
    samples = np.clip(np.asarray(samples, np.float64), -1, 1)
    companded = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256)
    return np.floor((companded + 1) / 2 * 255 + 0.5).astype(np.uint8)


def decode_mu_law(tokens: np.ndarray) -> np.ndarray:
    """Samples float32 [...] in [-1, 1] of tokens 0..255 [...]: the inverse up to the rounding."""
    companded = np.asarray(tokens, np.float64) / 255 * 2 - 1
    return (np.sign(companded) * np.expm1(np.abs(companded) * np.log(256)) / 255).astype(np.float32)


def read_wav(path: Path, rate: int = RATE) -> np.ndarray:
    """A WAV file as float32 [N] in [-1, 1]: the mean of its channels at `rate` samples a second (polyphase filter).

    UserError for a file that is missing, empty, damaged or in a format SciPy cannot read.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            own_rate, samples = wavfile.read(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: correct its name") from None
    except Exception as error:  # SciPy's reader fails in many ways on foreign bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as a WAV file ({reason}): get a fresh copy, or convert it") from None
    if not samples.size or own_rate < 1:
        raise UserError(f"{path} holds no samples: remove it")
    if samples.dtype.kind == "f":
        values = samples.astype(np.float32)
    elif samples.dtype == np.uint8:  # 8-bit WAV files are unsigned
        values = (samples.astype(np.float32) - 128) / 128
    else:
        values = samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    if values.ndim == 2:
        values = values.mean(1)
    if not np.isfinite(values).all():
        raise UserError(f"{path} has samples that are no finite numbers: convert it again")
    if own_rate != rate:
        common = gcd(own_rate, rate)
        values = resample_poly(values, rate // common, own_rate // common).astype(np.float32)
    return np.clip(values, -1, 1)


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    """Write samples in [-1, 1], float [N], as a 16-bit mono WAV file."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(np.asarray(samples, np.float64), -1, 1) * 32_767).round().astype("<i2").tobytes())
    write_bytes(path, content.getvalue())


def chorale_tokens(pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Chorales, each int [steps, 4] of pitches or -1, as one uint8 array of tokens below `CHORALE_VOCABULARY`.

    0: the end of a piece (four of them); 1: silence; 2 + pitch - 21: a pitch from 21 to 108. ValueError for others.
    """
    parts = []
    for piece in pieces:
        piece = np.asarray(piece)
        sounding = piece >= 0
        if piece.ndim != 2 or piece.shape[1] != VOICES or not np.isin(piece[~sounding], -1).all():
            raise ValueError("a chorale is a list of steps, each of four pitches, -1 for silence")
        if sounding.any() and not LOWEST <= piece[sounding].min() <= piece[sounding].max() <= HIGHEST:
            raise ValueError(f"pitches lie in {LOWEST}..{HIGHEST}")
        tokens = np.where(sounding, piece - LOWEST + FIRST_PITCH, SILENCE)
        parts.append(np.concatenate([tokens.reshape(-1), np.full(VOICES, END)]))
    return np.concatenate(parts).astype(np.uint8) if parts else np.zeros(0, np.uint8)


def chorales_of_tokens(tokens: np.ndarray) -> list[np.ndarray]:
    """The chorales, each int64 [steps, 4], in tokens [N]; also in a sampled sequence.

    A step with an END token ends a piece, an incomplete last step is dropped, empty pieces are left out.
    """
    tokens = np.asarray(tokens, np.int64)
    steps = tokens[: len(tokens) // VOICES * VOICES].reshape(-1, VOICES)
    ends = np.flatnonzero((steps == END).any(1))
    pitches = np.where(steps >= FIRST_PITCH, steps - FIRST_PITCH + LOWEST, -1)
    pieces = np.split(pitches, ends)
    # Every piece but the first begins with the step that ended the one before it.
    return [piece for piece in [pieces[0], *(piece[1:] for piece in pieces[1:])] if len(piece)]


def midi_bytes(piece: np.ndarray, tempo: int = 80, program: int = 19) -> bytes:
    """A Standard MIDI File (format 1) of one chorale, int [steps, voices]: a track of the tempo and one for each voice.

    tempo: quarter notes a minute. program: General MIDI's instrument from 0 (19: church organ). Equal neighbouring
    pitches of a voice are one note.
    """
    microseconds = 60_000_000 // tempo
    tracks = [b"\x00\xff\x51\x03" + microseconds.to_bytes(3, "big") + _END_OF_TRACK]
    for channel, voice in enumerate(np.asarray(piece).T.tolist()):
        tracks.append(_voice_track(voice, channel, program))
    header = b"MThd" + _big(6, 4) + _big(1, 2) + _big(len(tracks), 2) + _big(4 * TICKS, 2)
    return header + b"".join(b"MTrk" + _big(len(track), 4) + track for track in tracks)


_END_OF_TRACK = b"\x00\xff\x2f\x00"


def _voice_track(voice: Sequence[int], channel: int, program: int) -> bytes:
    """Program change, then a note-on where a pitch begins and a note-off where it ends."""
    track, waited, sounding = bytes((0, 0xC0 | channel, program)), 0, -1
    for pitch in [*voice, -1]:
        if pitch != sounding:
            if sounding >= 0:
                track += _variable_length(waited) + bytes((0x80 | channel, sounding, 0))
                waited = 0
            if pitch >= 0:
                track += _variable_length(waited) + bytes((0x90 | channel, pitch, 80))
                waited = 0
            sounding = pitch
        waited += TICKS
    return track + _END_OF_TRACK


def _big(value: int, size: int) -> bytes:
    return value.to_bytes(size, "big")


def _variable_length(value: int) -> bytes:
    """MIDI's numbers: seven bits a byte, the highest bit set in all but the last."""
    digits = [value & 127]
    while value := value >> 7:
        digits.append(value & 127 | 128)
    return bytes(reversed(digits))


def write_midi(path: Path, piece: np.ndarray, tempo: int = 80) -> None:
    """Write one chorale, int [steps, 4], as a MIDI file."""
    write_bytes(path, midi_bytes(piece, tempo))
