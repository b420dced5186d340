"""Audio: Opus, Ogg and WAV files, where sound comes from, where it goes, and how alike two recordings are.

PCM is everywhere signed 16 bit little-endian, interleaved stereo, 48 kHz: 20 ms are 960 samples or 3840 bytes.
"""
