#!/usr/bin/env bash
# Makes the base of an image from Debian's packages, under the name that the Dockerfile asks for:
# for hosts that reach a mirror of Debian and PyPI, but no registry of images.
#
#   sudo bash docker/base.sh docker/Dockerfile.cpu
#   podman build --pull=never -f docker/Dockerfile.cpu -t pipeline-local:cpu .
#
# Needs debootstrap, and podman or ENGINE=docker. MIRROR= names another mirror.
set -euo pipefail

if (($# != 1)); then
    echo "usage: bash docker/base.sh DOCKERFILE" >&2
    exit 2
fi
name=$(sed -n 's/^FROM //p' "$1")
[[ $name == */* ]] || name=library/$name
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

debootstrap --variant=minbase --include=ca-certificates,python3,python3-dev,python3-pip \
    bookworm "$root" "${MIRROR:-http://deb.debian.org/debian}"
rm -rf "$root"/var/cache/apt/archives/*.deb
# As in Python's own images: a plain name, and pip installs for the whole system.
ln -sf python3 "$root/usr/bin/python"
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
# This host's certificates, with that of its proxy if it has one.
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' >"$root/etc/pip.conf"
tar -C "$root" -c . | "${ENGINE:-podman}" import - "docker.io/$name"
