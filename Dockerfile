# The one image of Remora: three static programs, and nothing else.
#
#   docker build -t ghcr.io/remora-io/remora:0.1.0 .
#
# The builder's glibc must be 2.34 or newer: from then on a static program has name look-up inside it
# and needs no file of the C library at run time.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN deploy/image-rootfs /rootfs

FROM scratch
LABEL org.opencontainers.image.title="remora" \
      org.opencontainers.image.source="https://github.com/remora-io/remora" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /rootfs/ /
USER 2102:2102
ENTRYPOINT ["/remora-proxy"]
