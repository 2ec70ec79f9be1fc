# One image for serving and, in a second stage, for building the plans: a TensorRT plan runs only on the TensorRT that built it.
#
# 26.08: TensorRT 11.2 and Python 3.12. Not older than 26.07, the highest security floor in NVIDIA's bulletins for Triton up to November 2026;
# from 26.04 on, clients cannot register shared memory unless the server is told to allow it, which this one is not.
ARG TRITON=nvcr.io/nvidia/tritonserver:26.08-py3

FROM ${TRITON} AS server
# What the front model imports beside NumPy, which the image brings for its python backend. The project itself is not installed: its folder is copied, since
# the pins of its extra `serve` (NumPy 1, tritonclient 2.51) are about the embedded Triton 24.10. The second line is the extra `gpu`: CuPy fetches what the
# plans answer in GPU memory and resizes, nvImageCodec decodes JPEG; without it no request is answered here.
RUN pip install --no-cache-dir "tokenizers>=0.22" "pillow>=11" "pycocotools>=2.0.8" \
    "cupy-cuda13x>=13.6,<14" "nvidia-nvimgcodec-cu13[nvjpeg]>=0.9,<0.10" "nvidia-cuda-nvrtc>=13,<14"
COPY ensemble /opt/sam3/ensemble
# A path file and not PYTHONPATH, which the python backend's process ignores on Python 3.12.
RUN echo /opt/sam3 > "$(python3 -c 'import site; print(site.getsitepackages()[0])')/sam3.pth"
RUN useradd --create-home --uid 10001 sam3
USER sam3
EXPOSE 8000 8001 8002

FROM server AS build
USER root
# The image has TensorRT's libraries; the Python bindings come from the package index, in exactly their version (TRT_VERSION is set by the image).
RUN pip install --no-cache-dir "tensorrt-cu13-bindings==${TRT_VERSION%%+*}" \
    "torch==2.11.0" "torchvision==0.26.0" "transformers==5.17.0" "onnx>=1.19" "onnxscript>=0.5" "onnxruntime-gpu>=1.22" "rich>=13"
COPY export /opt/sam3/export
# Exports run as whoever called, so that the plans are theirs, and such a user has neither name nor home in here. A volume takes over this folder's mode.
RUN mkdir --mode=1777 /cache
ENV HOME=/cache USER=sam3
USER sam3
WORKDIR /cache
ENTRYPOINT ["python3", "-m", "export.cli"]
