# Equal, for our purposes, to the official python: a Python and its venv. Context: pip.conf and ca-certificates.crt of this machine.
ARG BASE
FROM ${BASE}
RUN apt-get update -q && apt-get install -q -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY pip.conf /etc/pip.conf
