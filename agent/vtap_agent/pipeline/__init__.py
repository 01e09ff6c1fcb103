"""The preprocessor: eBPF programs loaded, configured and counted, with the devices that copies pass."""

from vtap_agent.pipeline.pipeline import Pipeline
from vtap_agent.pipeline.steps import PipelineStep, TapPortDevices

__all__ = ["Pipeline", "PipelineStep", "TapPortDevices"]
