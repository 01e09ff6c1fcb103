"""Where desired taps and the list of pods come from: a directory of files, network namespaces, later the Kubernetes API."""
