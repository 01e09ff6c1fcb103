"""How copies are made. Each backend has observe(), a pure diff and apply(step)."""
