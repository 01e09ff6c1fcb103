"""The whole product on real Kubernetes: installed by its chart, seen through packets in the collector's files."""
