"""The software CUDA driver, pycuda on it, and the stand-in for TensorRT."""

from tests.software_cuda.fixtures import loaded_soft_cuda, pycuda_driver, pycuda_module, soft_cuda, stand_in_tensorrt

__all__ = ["loaded_soft_cuda", "pycuda_driver", "pycuda_module", "soft_cuda", "stand_in_tensorrt"]
