"""Shell completion, by argcomplete: of `vtap`, and of `kubectl vtap` (kubectl asks `kubectl_complete-vtap` on PATH)."""
