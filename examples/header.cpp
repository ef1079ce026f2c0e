// SPDX-License-Identifier: MIT
// in_tls.h in C++: compiled, and what it promises is checked by the compiler.
#include <cstddef>

#include "in_tls.h"

static_assert(IPPROTO_TLS == 205, "the protocol number");
static_assert(AF_HOSTNAME == 43, "the address family");
static_assert(offsetof(sockaddr_host, sh_addr) == 4, "the name follows family and port");
static_assert(sizeof(sockaddr_host) == 124, "nothing else is in an address");

int main()
{
	return socket(AF_INET, SOCK_STREAM, IPPROTO_TLS) < 0;
}
