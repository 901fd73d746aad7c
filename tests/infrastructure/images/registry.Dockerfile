# Equal, for our purposes, to the official apicurio/apicurio-registry. Context: a folder with app/, the unpacked tarball.
ARG BASE
FROM ${BASE}
RUN apt-get update -q && apt-get install -q -y --no-install-recommends openjdk-21-jre-headless && rm -rf /var/lib/apt/lists/*
COPY app /opt/registry
WORKDIR /opt/registry
CMD ["java", "-jar", "quarkus-run.jar"]
