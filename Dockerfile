# The gateway, and nothing else: a last stage without shell or package manager.
#
#   docker build -t portcullis .
#   docker run -v ./config:/etc/portcullis:ro -v portcullis:/var/lib/portcullis -p 8080:8080 portcullis
#
# `config` holds gateway.yaml; its `state` should be /var/lib/portcullis.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY Cargo.toml Cargo.lock gateway.yaml ./
COPY src src
COPY migrations migrations
COPY deploy/examples deploy/examples
COPY benches benches
COPY tests/it/main.rs tests/it/main.rs
COPY script/rootfs script/rootfs
ENV AWS_LC_SYS_CMAKE_BUILDER=0
RUN cargo build --release --locked --bin portcullis \
    && script/rootfs target/release/portcullis /rootfs

FROM scratch
COPY --from=build /rootfs /
USER 65532:65532
WORKDIR /var/lib/portcullis
VOLUME /var/lib/portcullis
EXPOSE 8080
# Asks the admin address of the file, without a shell.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s \
    CMD ["/portcullis", "health", "--config", "/etc/portcullis/gateway.yaml"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/portcullis"]
CMD ["serve", "--config", "/etc/portcullis/gateway.yaml"]
