#!/bin/sh
# SPDX-License-Identifier: MIT
#
# An HTTPS client in a few lines of Perl: client-perl.sh HOST PORT [AUTHORITIES]
#
# 205 is IPPROTO_TLS; 85 is TLS_REMOTE_HOSTNAME, 87 TLS_TRUSTED_PEER_CERTIFICATES, 100 TLS_ERROR.  Perl's own getsockopt
# has room for 256 bytes, and TLS_ERROR may be longer: ERANGE; hence the bare system call.

exec perl -MSocket -MPOSIX=uname -we '
    my ($host, $port, $authorities) = @ARGV;
    defined $port or die "usage: client-perl.sh HOST PORT [AUTHORITIES]\n";
    my $address = inet_aton($host) or die "$host has no address\n";
    socket(my $s, PF_INET, SOCK_STREAM, 205) or die "socket: $!\n";
    setsockopt($s, 205, 85, $host) or die "TLS_REMOTE_HOSTNAME: $!\n";
    !defined $authorities or setsockopt($s, 205, 87, $authorities) or die "$authorities: $!\n";
    unless (connect($s, sockaddr_in($port, $address))) {
        my ($error, $why, $size) = ("$!", "\0" x 2048, pack("I", 2048));
        my %getsockopt = (x86_64 => 55, aarch64 => 209);
        syscall($getsockopt{(uname)[4]}, fileno($s), 205, 100, $why, $size);
        die "connect: $error\nTLS_ERROR: ", unpack("Z*", $why), "\n";
    }
    send($s, "GET / HTTP/1.0\r\nHost: $host\r\n\r\n", 0) or die "send: $!\n";
    while (my $got = sysread($s, my $data, 65536) // die "recv: $!\n") { print $data }
' -- "$@"
