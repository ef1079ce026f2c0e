/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * TLS as a socket protocol: the constants for socket(2), connect(2), getsockopt(2) and
 * setsockopt(2).
 *
 *	int s = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);
 *	setsockopt(s, IPPROTO_TLS, TLS_REMOTE_HOSTNAME, "example.org", sizeof("example.org"));
 *	connect(s, address, size);
 *
 * For C and C++; needs no header of a kernel.
 */
#ifndef IN_TLS_H
#define IN_TLS_H

#ifndef __KERNEL__
#include <sys/types.h>
#include <sys/socket.h>
#include <netinet/in.h>
#endif

/* The protocol of socket(2), and the level of options. */
#ifndef IPPROTO_TLS
#define IPPROTO_TLS	205
#endif

/* The address family of struct sockaddr_host. */
#ifndef AF_HOSTNAME
#define AF_HOSTNAME	43
#endif

/* Bytes of a host name in an address, the final NUL included. */
#define HOSTNAME_MAX	120

struct host_addr {
	unsigned char name[HOSTNAME_MAX];	/* ends with a NUL */
};

/* For connect(2): the name is resolved, and is the identity that the peer must prove. */
struct sockaddr_host {
#ifdef __KERNEL__
	__kernel_sa_family_t sh_family;		/* AF_HOSTNAME */
	__be16 sh_port;				/* in network byte order */
#else
	sa_family_t sh_family;			/* AF_HOSTNAME */
	in_port_t sh_port;			/* in network byte order */
#endif
	struct host_addr sh_addr;
};

/* Options at level IPPROTO_TLS. */
#define TLS_REMOTE_HOSTNAME		85	/* string: whom to talk to */
#define TLS_HOSTNAME			86	/* string: a name that we serve or were asked for */
#define TLS_TRUSTED_PEER_CERTIFICATES	87	/* PEM or a path: whom to trust; set only */
#define TLS_CERTIFICATE_CHAIN		88	/* PEM or a path: our certificates, leaf first */
#define TLS_PRIVATE_KEY			89	/* PEM or a path: set only */
#define TLS_ALPN			90	/* string: "h2,http/1.1" */
#define TLS_SESSION_TTL			91	/* int: seconds, 0: no resumption */
#define TLS_DISABLE_CIPHER		92	/* string: one cipher; set only */
#define TLS_PEER_IDENTITY		93	/* string: the peer's subject; get only */
#define TLS_REQUEST_PEER_AUTH		94	/* int: TLS_PEER_AUTH_... */
#define TLS_PEER_CERTIFICATE_CHAIN	95	/* PEM; get only */
#define TLS_ID				96	/* 64 bits, unsigned; get only */
#define TLS_TRUSTED_CIPHERS		97	/* string: ciphers, separated by colons */
#define TLS_CHOSEN_CIPHER		98	/* string; get only */
#define TLS_ERROR			100	/* string: why the last call failed; get only */
#define TLS_REVOCATION_CHECKS		102	/* int: 0 or 1 */
#define TLS_OCSP_STAPLED_CHECKS		103	/* int: 0 or 1 */
#define TLS_OCSP_CHECKS			104	/* int: 0 or 1 */
#define TLS_CRL_CHECKS			105	/* int: 0 or 1 */
#define TLS_CACHED_REV_CHECKS		106	/* int: 0 or 1 */
#define TLS_CONTEXT			107	/* 64 bits: TLS_ID whose options to copy */
#define TLS_SESSION_REUSE		108	/* int: 0 or 1 */
#define TLS_RESUMED_SESSION		109	/* int: 0 or 1; get only */
#define TLS_ENABLE_CIPHER		110	/* string: one cipher; set only */
#define TLS_VERSION_MIN			111	/* int: TLS_VERSION_1_... */
#define TLS_VERSION_MAX			112	/* int: TLS_VERSION_1_... */
#define TLS_VERSION_CONN		113	/* int: TLS_VERSION_1_...; get only */
#define TLS_SERVER_OCSP_STAPLING	122	/* int: 0 or 1 */
#define TLS_UPGRADE			140	/* struct tls_upgrade; set only */
#define TLS_CHANNEL_BINDING		141	/* 32 bytes: tls-exporter; get only */
#define TLS_DATA_PATH			142	/* string: "relay" or "ktls"; get only */
#define TLS_KEY_EXCHANGE		143	/* string: name of a group; get only */

/* Versions, as in TLS_VERSION_MIN. */
#define TLS_VERSION_1_2			0x0303
#define TLS_VERSION_1_3			0x0304

/* Whether a server asks for a client's certificate: TLS_REQUEST_PEER_AUTH. */
#define TLS_PEER_AUTH_NONE		0
#define TLS_PEER_AUTH_REQUEST		1
#define TLS_PEER_AUTH_REQUIRE		2

/* Which side of TLS to take: struct tls_upgrade. */
#define TLS_ROLE_CLIENT			0
#define TLS_ROLE_SERVER			1

/* What TLS_UPGRADE takes: a connected TCP socket, which the program closes after it. */
struct tls_upgrade {
	int fd;
	int role;	/* TLS_ROLE_... */
};

#endif
