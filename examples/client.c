/* SPDX-License-Identifier: MIT */
/*
 * An HTTPS client without a TLS library: ./client HOST PORT [AUTHORITIES]
 *
 * The kernel, or `ssa run`, resolves the name, connects, does the handshake and checks the server's certificate: a connect(2)
 * that returns 0 means that HOST has proved who it is.  AUTHORITIES is a PEM file to trust instead of the system's.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "in_tls.h"

/* Say why a call has failed: errno, and the one line that TLS_ERROR has for a person. */
static int refused(const char *what, int fd)
{
	int error = errno;
	char why[1024];
	socklen_t size = sizeof(why);

	fprintf(stderr, "%s: %s\n", what, strerror(error));
	if (fd >= 0 && getsockopt(fd, IPPROTO_TLS, TLS_ERROR, why, &size) == 0 && size > 1)
		fprintf(stderr, "TLS_ERROR: %s\n", why);
	return EXIT_FAILURE;
}

static int sendAll(int fd, const char *data, size_t size)
{
	while (size > 0) {
		ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return -1;
		data += sent;
		size -= (size_t)sent;
	}
	return 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_host server = { .sh_family = AF_HOSTNAME };
	char buffer[4096], cipher[128];
	int fd, version, length;
	socklen_t size;
	ssize_t got;

	if (argc < 3 || argc > 4) {
		fprintf(stderr, "usage: %s HOST PORT [AUTHORITIES]\n", argv[0]);
		return 2;
	}
	if (strlen(argv[1]) >= sizeof(server.sh_addr.name)) {
		fprintf(stderr, "%s: the name is too long\n", argv[1]);
		return 2;
	}
	memcpy(server.sh_addr.name, argv[1], strlen(argv[1]) + 1);
	server.sh_port = htons((in_port_t)atoi(argv[2]));

	fd = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);
	if (fd < 0)
		return refused("socket", fd);
	if (argc == 4 && setsockopt(fd, IPPROTO_TLS, TLS_TRUSTED_PEER_CERTIFICATES, argv[3], (socklen_t)strlen(argv[3]) + 1) < 0)
		return refused(argv[3], fd);
	if (connect(fd, (struct sockaddr *)&server, sizeof(server)) < 0)
		return refused("connect", fd);

	size = sizeof(version);
	if (getsockopt(fd, IPPROTO_TLS, TLS_VERSION_CONN, &version, &size) < 0)
		return refused("TLS_VERSION_CONN", fd);
	size = sizeof(cipher);
	if (getsockopt(fd, IPPROTO_TLS, TLS_CHOSEN_CIPHER, cipher, &size) < 0)
		return refused("TLS_CHOSEN_CIPHER", fd);
	fprintf(stderr, "TLS 1.%d, %s\n", version - 0x0301, cipher);

	length = snprintf(buffer, sizeof(buffer), "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", argv[1]);
	if (sendAll(fd, buffer, (size_t)length) < 0)
		return refused("send", fd);
	/* 0 is the server's own word that this was all; a connection that was cut is an error. */
	while ((got = recv(fd, buffer, sizeof(buffer), 0)) != 0) {
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return refused("recv", fd);
		if (fwrite(buffer, 1, (size_t)got, stdout) != (size_t)got)
			return refused("standard output", -1);
	}
	if (fflush(stdout) != 0)
		return refused("standard output", -1);
	close(fd);
	return EXIT_SUCCESS;
}
