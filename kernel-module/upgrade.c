// SPDX-License-Identifier: GPL-2.0-only
/*
 * TLS_UPGRADE: TLS on a TCP connection that the program has already used.
 */
#include <linux/file.h>
#include <linux/module.h>
#include <linux/tcp.h>
#include <net/tcp.h>

#include "ssa.h"

/* Why a descriptor cannot be upgraded, or 0. */
static int ssa_unfit(const struct sock *sk, const struct socket *tcp)
{
	if (!tcp)
		return -ENOTSOCK;
	if (tcp->sk->sk_family != sk->sk_family)
		return -EAFNOSUPPORT;
	if (tcp->sk->sk_protocol != IPPROTO_TCP || tcp->sk->sk_type != SOCK_STREAM ||
	    !net_eq(sock_net(tcp->sk), sock_net(sk)))
		return -EINVAL;
	if (tcp->sk->sk_state != TCP_ESTABLISHED && tcp->sk->sk_state != TCP_CLOSE_WAIT)
		return -ENOTCONN;
	return 0;
}

/*
 * What there is to say before the descriptor counts: an errno, 0 after a wait for the attempt that
 * runs, or 1 where a new one may begin.  Under lock_sock.
 */
static int ssa_may_upgrade(struct socket *sock, bool nonblock)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	int error;

	/* the restart of one that a signal has interrupted */
	if (s->state == SSA_CONNECTING && !nonblock)
		return ssa_await(sock, false);
	if (s->state == SSA_CONNECTING) {
		ssa_complain(s, "TLS_UPGRADE: a handshake is in progress");
		return -EALREADY;
	}
	if (s->state != SSA_NEW) {
		ssa_complain(s, "TLS_UPGRADE: the socket is connected or listening");
		return -EISCONN;
	}
	error = ssa_refused(s);
	if (error)
		return error;
	if (s->binder) {
		ssa_complain(s,
			     "TLS_UPGRADE: the socket is bound; the connection has its own address");
		return -EINVAL;
	}
	return 1;
}

/* TLS_UPGRADE: a connected TCP socket of the caller becomes the inner one. */
int ssa_upgrade(struct socket *sock, const u8 *value, size_t size)
{
	bool nonblock = sock->file && sock->file->f_flags & O_NONBLOCK;
	struct sockaddr_storage local, remote;
	struct tls_upgrade upgrade;
	struct ssa_event *event = NULL;
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	u8 blocking = !nonblock, role;
	struct file *file = NULL;
	int error, locals, remotes;

	memcpy(&upgrade, value, min(size, sizeof(upgrade)));
	if (size != sizeof(upgrade) ||
	    (upgrade.role != SSA_ROLE_CLIENT && upgrade.role != SSA_ROLE_SERVER)) {
		ssa_complain(s, "TLS_UPGRADE takes a descriptor, and 0 (client) or 1 (server)");
		return -EINVAL;
	}
	role = upgrade.role;
	lock_sock(sk);
	/* Before a look at the descriptor, which may be closed once an attempt runs. */
	error = ssa_may_upgrade(sock, nonblock);
	if (error <= 0)
		goto unlock;
	file = fget(upgrade.fd);
	if (!file) {
		ssa_complain(s, "TLS_UPGRADE: %d is no descriptor", upgrade.fd);
		error = -EBADF;
		goto unlock;
	}
	error = ssa_unfit(sk, sock_from_file(file));
	if (error) {
		ssa_complain(s,
			     "TLS_UPGRADE: no connected TCP socket of this family and namespace: %pe",
			     ERR_PTR(error));
		goto unlock;
	}
	ssa_complain(s, NULL);
	locals = ssa_address(sock_from_file(file), false, &local);
	remotes = ssa_address(sock_from_file(file), true, &remote);
	error = min(min(locals, remotes), 0);
	if (error)
		goto unlock;
	event = ssa_event_new(sk, SSA_C_UPGRADE_NOTIFY, SSA_ADDRESS_SIZE + 32);
	error = PTR_ERR_OR_ZERO(event);
	if (error)
		goto unlock;
	ssa_event_add(event, SSA_A_ROLE, &role, sizeof(role));
	ssa_event_add(event, SSA_A_BLOCKING, &blocking, sizeof(blocking));
	ssa_event_add(event, SSA_A_SOCKADDR_EXTERNAL, &local, locals);
	ssa_event_add(event, SSA_A_SOCKADDR_REMOTE, &remote, remotes);
	s->spare_file = s->inner_file;
	s->inner_file = get_file(file);
	s->inner = sock_from_file(file);
	tcp_sock_set_nodelay(s->inner->sk);
	sock_error(sk);		/* of a non-blocking attempt that nobody has asked about */
	sk->sk_state = TCP_SYN_SENT;
	sock->state = SS_CONNECTING;
	ssa_set_state(s, SSA_CONNECTING);
	error = ssa_event_post(event);
	if (error)
		ssa_finish(sk, -error);
	error = s->state == SSA_CONNECTING ? ssa_await(sock, nonblock) : sock_error(sk) ?: error;
	if (s->state == SSA_NEW)
		sock->state = SS_UNCONNECTED;
unlock:
	release_sock(sk);
	if (!IS_ERR_OR_NULL(event))
		ssa_event_put(event);
	if (file)
		fput(file);
	return error;
}
