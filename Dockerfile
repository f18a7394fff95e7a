# docker build -t kdjax . && docker run --rm kdjax
# The first stage is a machine as the README asks for it, Python and make; .devcontainer stops there.
FROM python:3.11-slim AS machine
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /kdjax

FROM machine
COPY . .
RUN make setup
CMD ["make", "demo"]
