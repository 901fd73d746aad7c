# Equal, for our purposes, to the official apache/kafka: the jars in /opt/kafka/libs and a Java. Context: a folder with libs/.
ARG BASE
FROM ${BASE}
RUN apt-get update -q && apt-get install -q -y --no-install-recommends openjdk-21-jre-headless && rm -rf /var/lib/apt/lists/*
COPY libs /opt/kafka/libs
