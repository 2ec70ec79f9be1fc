from ensemble.front import TritonPythonModel

__all__ = ["TritonPythonModel"]
