# A pod image built by Docker: the same files as `enclavectl build --pod-image` puts into one.
#
#   docker build --build-arg APP=registry.example.org/app:1 --build-arg MANIFEST=app/enclave.yaml \
#       --build-arg KERNEL=target/kernel/bzImage --tag app-enclave:1 .
#
# Docker hands over the root filesystem of APP and not its ENTRYPOINT, CMD, ENV, USER and WORKDIR: the manifest must
# say them. (`enclavectl build --image docker-daemon:app:1` reads both.) Nothing is fetched but the three base images and,
# by the stage `build`, the crates of Cargo.lock. Needs BuildKit, Docker's default since version 23.

# The application's image.
ARG APP
# Where the programs are built: cargo, a C compiler, make.
ARG RUST=rust:1.91-bookworm
# An image that has the programs in /usr/local/bin, instead of building them.
ARG TOOLS=build

FROM ${RUST} AS build
WORKDIR /source
COPY . .
RUN cargo build --locked --release -p enclavectl -p enclave-shim -p enclave-app \
    && mv target/*/release/enclavectl target/*/release/enclave-shim target/*/release/enclave-app /usr/local/bin

FROM ${TOOLS} AS tools

FROM ${APP} AS app

FROM tools AS image
# Paths in the build context.
ARG MANIFEST=enclave.yaml
ARG KERNEL=target/kernel/bzImage
# Seconds since 1970 that the image's metadata gives as its time of build.
ARG SOURCE_DATE_EPOCH=0
COPY ${MANIFEST} /in/enclave.yaml
COPY ${KERNEL} /in/kernel
# Mounted, not copied: owners, modes and links stay as they are.
RUN --mount=type=bind,from=app,source=/,target=/in/rootfs ["/usr/local/bin/enclavectl", "build", "--rootfs", "/in/rootfs", \
    "--kernel", "/in/kernel", "--app", "/in/enclave.yaml", "--output", "/image.eif", "--pod-rootfs", "/pod"]

FROM scratch
COPY --from=image /pod/ /
USER 65532:65532
WORKDIR /
EXPOSE 9090
ENTRYPOINT ["/enclave-shim", "run"]
