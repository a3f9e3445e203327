# syntax=docker/dockerfile:1
# Two stages: the first compiles and builds every wheel once, the second has only what runs. No secrets in either.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends build-essential && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
COPY backends/llamacpp/build.cmake backends/llamacpp/
RUN pip install --require-hashes --only-binary=:all: -r requirements-build.lock
# Not for this builder's own processor: the image is to run elsewhere too (AVX2 and FMA on x86-64).
ARG CMAKE_ARGS="-DGGML_NATIVE=OFF"
RUN CMAKE_ARGS="-DCMAKE_PROJECT_llama_cpp_INCLUDE=/src/backends/llamacpp/build.cmake -DLLAVA_BUILD=OFF \
      -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
      ${CMAKE_ARGS}" \
    pip wheel --no-deps --require-hashes --no-binary=llama-cpp-python --no-build-isolation -w /wheels -r requirements.lock
COPY . .
RUN pip wheel --no-deps --no-build-isolation -w /wheels .

FROM python:${PYTHON}-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home chasqui
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels pip install --no-cache-dir --no-index --no-deps /wheels/*.whl
WORKDIR /home/chasqui
COPY README.md ./
COPY docs docs
COPY config config
# The models of the box go beside the configuration, so that a fresh volume needs no network.
RUN CHASQUI_HOME=/home/chasqui/config chasqui models prepare \
    && mkdir var && chown chasqui:chasqui var
USER chasqui
VOLUME /home/chasqui/var
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
CMD ["chasqui", "serve", "--host", "0.0.0.0"]
