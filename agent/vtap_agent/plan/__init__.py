"""Pure decisions: (taps, destinations, inventory) → desired data plane → ordered steps. No I/O."""
