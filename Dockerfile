# SPDX-License-Identifier: GPL-2.0-or-later
# nbdkit with the drover plugin, and drover.
#
#   docker build -t drover .
#
# Serve a disk (the state directory lies beside the image, /disk/vm1.img.drover):
#
#   docker run -d --name vm1-disk -v /srv/vm1:/disk -v /run/vm1:/run/drover \
#     -v /etc/machine-id:/etc/machine-id:ro drover \
#     nbdkit -f -t 32 -U /run/drover/root.sock drover /disk/vm1.img control=/run/drover/root.ctl
#   docker exec vm1-disk drover ctl /run/drover/root.ctl status
#
# Be a destination: keep a container running (`sleep infinity`), with its ports published, and
# give the source `--rsh 'docker exec -i {host}'` or `--rsh 'kubectl exec -i {host} --'`.

FROM debian:bookworm-slim AS build
COPY test/packages /src/test/packages
RUN apt-get update && \
    apt-get install -y --no-install-recommends $(awk '$1 == "build" { print $2 }' /src/test/packages) && \
    rm -rf /var/lib/apt/lists/*
COPY . /src
RUN cmake -S /src -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX=/usr && \
    ninja -C /build drover nbdkit-drover-plugin && \
    for part in migrator nbd-proxy; do DESTDIR=/image cmake --install /build/$part --strip || exit 1; done

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="drover" \
      org.opencontainers.image.description="Moves running virtual machines with their local disks over a WAN" \
      org.opencontainers.image.licenses="GPL-2.0-or-later"
# What the programs are linked with; nbdkit; ssh, by which a source reaches its destination; and
# tini, to end what an agent leaves behind when it is gone.
RUN apt-get update && \
    apt-get install -y --no-install-recommends nbdkit openssh-client tini \
      libnbd0 liburing2 libgnutls30 libfmt9 libldns3 libnl-genl-3-200 libzstd1 && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build /image/ /
COPY conf/drover.toml /etc/drover/drover.toml
RUN mkdir -p /etc/drover/vm.d /var/lib/drover/images /var/lib/drover/state /run/drover
VOLUME ["/var/lib/drover"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["drover", "--help"]
