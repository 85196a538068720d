# docker build --build-arg EXTRA=cuda -t transformer_jax .    EXTRA is cpu, cuda or tpu
FROM python:3.12-slim
ARG EXTRA=cpu
COPY . /source
RUN pip install --no-cache-dir "/source[$EXTRA]" -c /source/constraints.txt && rm -r /source
ENTRYPOINT []
CMD ["transformer-jax", "--help"]
