/* SPDX-License-Identifier: MIT */
/*
 * An HTTPS server without a TLS library: ./server PORT CHAIN KEY
 *
 * CHAIN and KEY are PEM files, opened with this program's rights; port 0 takes a free one.  accept(2) gives only connections
 * whose handshake has succeeded.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "in_tls.h"

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

/* Reads a request up to its empty line; -1 with errno, or 0 where the client has left. */
static int readRequest(int fd)
{
	char request[8192];
	size_t size = 0;

	while (size < sizeof(request) - 1) {
		ssize_t got = recv(fd, request + size, sizeof(request) - 1 - size, 0);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return (int)got;
		size += (size_t)got;
		request[size] = '\0';
		if (strstr(request, "\r\n\r\n") != NULL)
			return 1;
	}
	errno = EMSGSIZE;
	return -1;
}

static int answer(int fd, const struct sockaddr_in *client)
{
	char body[512], response[1024], cipher[128], host[INET_ADDRSTRLEN];
	socklen_t size = sizeof(cipher);
	int length, sent;

	if (getsockopt(fd, IPPROTO_TLS, TLS_CHOSEN_CIPHER, cipher, &size) < 0)
		return refused("TLS_CHOSEN_CIPHER", fd);
	inet_ntop(AF_INET, &client->sin_addr, host, sizeof(host));
	snprintf(body, sizeof(body), "Hello %s, this is %s.\n", host, cipher);
	length = snprintf(response, sizeof(response),
			  "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
	for (sent = 0; sent < length;) {
		ssize_t now = send(fd, response + sent, (size_t)(length - sent), MSG_NOSIGNAL);

		if (now < 0 && errno == EINTR)
			continue;
		if (now < 0)
			return refused("send", fd);
		sent += (int)now;
	}
	return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address;
	socklen_t size = sizeof(address);
	int listener, on = 1;

	if (argc != 4) {
		fprintf(stderr, "usage: %s PORT CHAIN KEY\n", argv[0]);
		return 2;
	}
	listener = socket(AF_INET, SOCK_STREAM, IPPROTO_TLS);
	if (listener < 0)
		return refused("socket", listener);
	if (setsockopt(listener, IPPROTO_TLS, TLS_CERTIFICATE_CHAIN, argv[2], (socklen_t)strlen(argv[2]) + 1) < 0)
		return refused(argv[2], listener);
	if (setsockopt(listener, IPPROTO_TLS, TLS_PRIVATE_KEY, argv[3], (socklen_t)strlen(argv[3]) + 1) < 0)
		return refused(argv[3], listener);
	if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0)
		return refused("SO_REUSEADDR", listener);
	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	address.sin_port = htons((in_port_t)atoi(argv[1]));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0)
		return refused("bind", listener);
	if (listen(listener, 16) < 0)
		return refused("listen", listener);
	if (getsockname(listener, (struct sockaddr *)&address, &size) < 0)
		return refused("getsockname", listener);
	printf("listening on port %d\n", ntohs(address.sin_port));
	fflush(stdout);

	for (;;) {
		struct sockaddr_in client;
		int connection;

		size = sizeof(client);
		connection = accept(listener, (struct sockaddr *)&client, &size);
		if (connection < 0 && (errno == EINTR || errno == ECONNABORTED))
			continue;
		if (connection < 0)
			return refused("accept", listener);
		/* What goes wrong on one connection is printed, and is no reason to leave the others. */
		switch (readRequest(connection)) {
		case 1:
			answer(connection, &client);
			break;
		case -1:
			refused("recv", connection);
			break;
		}
		close(connection);
	}
}
