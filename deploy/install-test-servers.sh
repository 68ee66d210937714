#!/usr/bin/env bash
# Install what tests of real servers and real networks need: redis-server, iproute2 and iptables. Without root or
# apt-get those tests are skipped, and say so.
set -euo pipefail

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v ip >/dev/null || missing+=(iproute2)
command -v iptables >/dev/null || missing+=(iptables)
[[ ${#missing[@]} == 0 ]] && exit 0

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "not installed: ${missing[*]}; the tests that need them will be skipped" >&2
  exit 0
fi
echo "installing ${missing[*]} for the tests (once)"
# The tests start their own server; the package must not start one for the whole machine.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
install() {
  apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}
# A mirror that is away must not keep all other tests from running.
install || install || echo "could not install ${missing[*]}; the tests that need them will say so" >&2
