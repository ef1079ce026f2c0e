#!/bin/sh
# SPDX-License-Identifier: MIT
#
# An HTTPS client of socat and no TLS library: client-socat.sh HOST PORT [AUTHORITIES]
#
# so-prototype is the third argument of socket(2).  setsockopt-listen sets an option between socket(2) and connect(2), also
# for a client: 85 is TLS_REMOTE_HOSTNAME, 87 TLS_TRUSTED_PEER_CERTIFICATES; socat wants the text as hexadecimal digits.

set -eu
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: $0 HOST PORT [AUTHORITIES]" >&2
    exit 2
fi
host=$1 port=$2

hexadecimal() {
    printf %s "$1" | od -An -v -tx1 | tr -d ' \n'
}

options=so-prototype=205,setsockopt-listen=205:85:x$(hexadecimal "$host")
if [ $# = 3 ]; then
    options=$options,setsockopt-listen=205:87:x$(hexadecimal "$3")
fi
printf 'GET / HTTP/1.0\r\nHost: %s\r\n\r\n' "$host" | socat -t 10 - "TCP4:$host:$port,$options"
