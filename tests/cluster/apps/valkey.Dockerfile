# The chart's Redis, for a cluster without a registry: the server out of a wheel, on Debian.
ARG PYTHON_IMAGE
FROM ${PYTHON_IMAGE}
COPY --chmod=755 redis-server redis-cli /usr/local/bin/
USER 999:999
CMD ["redis-server"]
