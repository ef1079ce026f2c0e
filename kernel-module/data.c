// SPDX-License-Identifier: GPL-2.0-only
/*
 * Data: every call goes to the data socket, which is our end of the pair to the daemon's relay, or the TCP socket
 * itself where the daemon has installed kTLS on it.
 */
#include <linux/module.h>
#include <asm/ioctls.h>
#include <net/tcp.h>

#include "ssa.h"

#define SSA_REFUSED_TO_SEND	(MSG_OOB | MSG_ZEROCOPY | MSG_FASTOPEN)

__poll_t ssa_poll(struct file *file, struct socket *sock, struct poll_table_struct *table)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	__poll_t mask = 0;

	sock_poll_wait(file, sock, table);
	switch (ssa_state(s)) {
	case SSA_CONNECTING:
		return 0;
	case SSA_ESTABLISHED:
		mask = READ_ONCE(s->data->ops)->poll(file, s->data, NULL);
		if (READ_ONCE(s->shut))
			mask |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
		break;
	case SSA_LISTEN:
		mask = list_empty_careful(&s->queue) ? 0 : EPOLLIN | EPOLLRDNORM;
		break;
	default:
		mask = EPOLLOUT | EPOLLWRNORM | EPOLLHUP;
		if (READ_ONCE(sk->sk_err))
			mask |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
	}
	if (READ_ONCE(sk->sk_err))
		mask |= EPOLLERR;
	return mask;
}

/* Whether data can move; waits for the end of an attempt, as TCP does. */
static int ssa_ready(struct socket *sock, int flags)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	bool nonblock = (flags & MSG_DONTWAIT) || (sock->file && sock->file->f_flags & O_NONBLOCK);

	if (ssa_state(s) == SSA_CONNECTING && !nonblock &&
	    wait_event_interruptible(*sk_sleep(sk), ssa_state(s) != SSA_CONNECTING))
		return -ERESTARTSYS;
	switch (ssa_state(s)) {
	case SSA_ESTABLISHED:
		return 0;
	case SSA_CONNECTING:
		return -EAGAIN;
	default:
		return sock_error(sk) ?: -ENOTCONN;
	}
}

/* Whether data can be sent, and how long that may take. */
static int ssa_ready_to_send(struct socket *sock, int flags)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	int error = ssa_ready(sock, flags);

	if (error == -ENOTCONN) {
		error = -EPIPE;		/* as TCP */
		if (!(flags & MSG_NOSIGNAL))
			send_sig(SIGPIPE, current, 0);
	}
	if (error)
		return error;
	s->data->sk->sk_sndtimeo = sock->sk->sk_sndtimeo;
	return s->ktls ? ssa_ktls_may_send(s, flags) : 0;
}

int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	int error;

	if (msg->msg_flags & SSA_REFUSED_TO_SEND)
		return -EOPNOTSUPP;
	error = ssa_ready_to_send(sock, msg->msg_flags);
	if (error)
		return error;
	/* No address, no descriptors for the daemon, no record types for kTLS. */
	msg->msg_name = NULL;
	msg->msg_namelen = 0;
	msg->msg_control = NULL;
	msg->msg_controllen = 0;
	if (s->ktls)
		return ssa_ktls_sendmsg(s, msg, len);
	return READ_ONCE(s->data->ops)->sendmsg(s->data, msg, len);
}

#if !SSA_SINCE(6, 5)
ssize_t ssa_sendpage(struct socket *sock, struct page *page, int offset, size_t size, int flags)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	ssize_t sent = ssa_ready_to_send(sock, flags);

	if (sent)
		return sent;
	sent = READ_ONCE(s->data->ops)->sendpage(s->data, page, offset, size, flags);
	return s->ktls ? ssa_ktls_result(s, sent) : sent;
}
#else
/* sendfile has found the end of its file, and will not send the more that it has announced. */
void ssa_splice_eof(struct socket *sock)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	const struct proto_ops *ops;

	if (ssa_state(s) != SSA_ESTABLISHED)
		return;
	ops = READ_ONCE(s->data->ops);
	if (ops->splice_eof)
		ops->splice_eof(s->data);
}
#endif

int ssa_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	int got;

	if (flags & MSG_OOB)
		return -EOPNOTSUPP;
	if (flags & MSG_ERRQUEUE)
		return -EAGAIN;
	got = ssa_ready(sock, flags);
	if (got)
		return got;
	if (READ_ONCE(s->shut))
		flags |= MSG_DONTWAIT;	/* what has come is still there, and then the end */
	if (s->ktls) {
		got = ssa_ktls_recvmsg(s, msg, len, flags);
	} else {
		void *name = msg->msg_name;

		s->data->sk->sk_rcvtimeo = sk->sk_rcvtimeo;
		s->data->sk->sk_rcvlowat = sk->sk_rcvlowat;
		msg->msg_name = NULL;
		got = READ_ONCE(s->data->ops)->recvmsg(s->data, msg, len, flags);
		msg->msg_name = name;
		/* An end of stream counts only where the daemon vouches for it: a dead one's end looks the same. */
		if (!got && len && !READ_ONCE(s->eof) && !READ_ONCE(s->shut))
			got = -ECONNRESET;
	}
	if (got == -EAGAIN && READ_ONCE(s->shut))
		got = 0;
	msg->msg_namelen = 0;
	msg->msg_flags &= ~MSG_EOR;
	return got;
}

static int ssa_shutdown_data(struct ssa_sock *s, int how)
{
	struct sock *sk = (struct sock *)s;
	int error = 0;

	if (how != SHUT_WR)
		WRITE_ONCE(s->shut, true);
	if (s->ktls)
		error = ssa_ktls_shutdown(s, how);
	else if (how != SHUT_RD)	/* of the other the daemon would think that the program has ended */
		error = READ_ONCE(s->data->ops)->shutdown(s->data, SHUT_WR);
	if (how != SHUT_WR)
		sk->sk_state_change(sk);
	return error;
}

int ssa_shutdown(struct socket *sock, int how)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	int error = -ENOTCONN;

	if (how < SHUT_RD || how > SHUT_RDWR)
		return -EINVAL;
	if (ssa_state(s) == SSA_ESTABLISHED)
		return ssa_shutdown_data(s, how);
	lock_sock(sk);
	if (s->state == SSA_LISTEN && how != SHUT_WR) {
		/* As TCP: whoever waits in accept is woken, and there is nothing left to accept. */
		sk->sk_state = TCP_CLOSE;
		ssa_set_state(s, SSA_DEAD);
		kernel_sock_shutdown(s->inner, SHUT_RDWR);
		sk->sk_state_change(sk);
		error = 0;
	}
	release_sock(sk);
	return error;
}

int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	struct socket *to = s->inner;

	if (ssa_state(s) == SSA_ESTABLISHED) {
		if (s->ktls && cmd == FIONREAD)
			return put_user(ssa_ktls_available(s), (int __user *)arg);
		to = s->data;
	}
	return READ_ONCE(to->ops)->ioctl(to, cmd, arg);
}
