"""Peer selectors of filters, resolved to addresses and kept in TapPeerSlices. Deciding only: others write what is decided."""
