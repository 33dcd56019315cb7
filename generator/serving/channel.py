"""The gRPC channel to a Triton server."""

from __future__ import annotations

import tritonclient.grpc as triton

FIRST_RECONNECT_MS = 200
LONGEST_RECONNECT_MS = 2_000
"""Milliseconds until a lost connection is tried again, at most; gRPC's own two minutes are as long as a night waits."""
MESSAGE_BYTES = 2**31 - 1


def open_channel(address: str) -> triton.InferenceServerClient:
    """A client that connects at its first call, and soon again when the server is back."""
    return triton.InferenceServerClient(
        address,
        channel_args=[
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
            ("grpc.min_reconnect_backoff_ms", FIRST_RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_MS),
        ],
    )
