"""The hands of the core: websocket, UDP, timers and the MLS library. Their errors leave as ours."""
