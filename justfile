# What developers run. `just --list` shows it all; CI runs .ci/run, which needs no just.

# Everything that CI checks.
ci:
    .ci/run

# Format, lints.
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets -- -D warnings

test *ARGS:
    cargo test --workspace {{ARGS}}

# The story of a small shop in a mesh.
demo *ARGS:
    cargo run --release -- demo {{ARGS}}

# Instructions per request of the outbound and the inbound proxy (needs valgrind).
instructions *ARGS:
    cargo build --release -p remora-proxy -p remora-control-plane
    tests/bench/instructions {{ARGS}}

# Our pair, a pair of Envoys where envoy is installed, and no proxy at all, in one run, interleaved.
bench *ARGS:
    cargo build --release -p remora-proxy -p remora-control-plane
    tests/bench/run {{ARGS}}

# The control plane with 1000 Services, 10,000 endpoints and 200 proxies; about three minutes.
scale *ARGS:
    cargo build --release -p remora-control-plane
    tests/bench/scale {{ARGS}}

# The image.
image TAG="ghcr.io/remora-io/remora:dev":
    docker build -t {{TAG}} .

# The files of the image, in a directory, without Docker.
image-rootfs DIR:
    deploy/image-rootfs {{DIR}}

# The Helm chart, made anew from deploy/templates and deploy/values.yaml.
helm-chart:
    cargo run -p remora-cli -- install --helm-chart deploy/helm/remora
