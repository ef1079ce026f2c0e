// SPDX-License-Identifier: GPL-2.0-only
/*
 * Data: every call goes to the data socket, which is our end of the pair to the daemon's relay, or
 * the TCP socket itself where the daemon has installed kTLS on it.
 */
#include <linux/module.h>
#include <linux/sockios.h>
#include <linux/un.h>
#include <asm/ioctls.h>
#include <net/af_unix.h>
#include <net/tcp.h>
#include <net/tls.h>

#include "ssa.h"

/*
 * Bytes that surely fit into a pair, whatever the daemon's writes are cut into: each has some
 * overhead there.
 */
#define SSA_LOW_WATER		65536

#define SSA_REFUSED_TO_SEND	(MSG_OOB | MSG_ZEROCOPY | MSG_FASTOPEN)

/*
 * How many bytes make a socket readable: SO_RCVLOWAT, but never more than surely fit into the pair.
 */
static int ssa_low_water(const struct sock *sk)
{
	return clamp(READ_ONCE(sk->sk_rcvlowat), 1, SSA_LOW_WATER);
}

/*
 * Poll the pair as TCP would be: with SO_RCVLOWAT, and with a mark where somebody waits for room.
 */
static __poll_t ssa_poll_data(struct file *file, struct ssa_sock *s)
{
	const struct proto_ops *ops = READ_ONCE(s->data->ops);
	struct sock *data = s->data->sk;
	int low = ssa_low_water((struct sock *)s);
	__poll_t mask;

	mask = ops->poll(file, s->data, NULL);
	if (!(mask & EPOLLOUT)) {
		set_bit(SSA_NOSPACE, &s->flags);
		smp_mb__after_atomic();	/* the mark, then the look; ssa_wake the other way */
		mask = ops->poll(file, s->data, NULL);
	}
	if (low > 1 && !s->ktls && !(mask & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) &&
	    unix_inq_len(data) < low)
		mask &= ~(EPOLLIN | EPOLLRDNORM);
	return mask;
}

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
		mask = ssa_poll_data(file, s);
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
		/* Why a connect has failed stays for SO_ERROR, or for the next connect. */
		return -READ_ONCE(sk->sk_err) ?: -ENOTCONN;
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

/* What a send has returned; whoever could not send all waits for room. */
static ssize_t ssa_sent(struct ssa_sock *s, ssize_t sent, size_t size)
{
	if (s->ktls)
		sent = ssa_ktls_result(s, sent);
	if (sent == -EAGAIN || (sent >= 0 && sent < size))
		ssa_want_space(s);
	return sent;
}

int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	int error;

	if (msg->msg_flags & SSA_REFUSED_TO_SEND) {
		ssa_complain(s, "MSG_OOB, MSG_ZEROCOPY and MSG_FASTOPEN are not available for TLS");
		return -EOPNOTSUPP;
	}
	error = ssa_ready_to_send(sock, msg->msg_flags);
	if (error)
		return error;
	/* No address, no descriptors for the daemon, no record types for kTLS. */
	msg->msg_name = NULL;
	msg->msg_namelen = 0;
	msg->msg_control = NULL;
	msg->msg_controllen = 0;
	if (s->ktls)
		ssa_ktls_flags(msg);
	return ssa_sent(s, READ_ONCE(s->data->ops)->sendmsg(s->data, msg, len), len);
}

#if !SSA_SINCE(6, 5)
ssize_t ssa_sendpage(struct socket *sock, struct page *page, int offset, size_t size, int flags)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	int error = ssa_ready_to_send(sock, flags);

	if (error)
		return error;
	return ssa_sent(s, READ_ONCE(s->data->ops)->sendpage(s->data, page, offset, size, flags),
			size);
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

/* Whether a receive from the pair may go on: there are so many bytes, or something has ended. */
static bool ssa_may_receive(const struct ssa_sock *s, long wanted)
{
	struct sock *data = s->data->sk;

	return READ_ONCE(s->shut) || READ_ONCE(data->sk_err) ||
	       (READ_ONCE(data->sk_shutdown) & RCV_SHUTDOWN) || unix_inq_len(data) >= wanted;
}

/*
 * Receive from the pair.  It waits here, not in AF_UNIX, which knows neither the low-water mark
 * with MSG_PEEK, nor the program's own shutdown, of which the daemon's end must not hear.
 */
static int ssa_relay_recvmsg(struct sock *sk, struct msghdr *msg, size_t len, int flags)
{
	size_t target = sock_rcvlowat(sk, flags & MSG_WAITALL, len);
	long timeout = sock_rcvtimeo(sk, flags & MSG_DONTWAIT);
	struct iov_iter start = msg->msg_iter;
	struct ssa_sock *s = ssa_sk(sk);
	size_t total = 0;
	long wanted;
	int got;

	for (;;) {
		if (flags & MSG_PEEK) {
			msg->msg_iter = start;
			total = 0;
		}
		got = READ_ONCE(s->data->ops)
			      ->recvmsg(s->data, msg, len - total, flags | MSG_DONTWAIT);
		if (got > 0)
			total += got;
		if (!len || total >= target)
			return total;
		if (!got) {
			/*
			 * An end counts only where the daemon vouches for it: a dead one's end
			 * looks the same.
			 */
			if (total || READ_ONCE(s->eof) || READ_ONCE(s->shut))
				return total;
			return -ECONNRESET;
		}
		if (got < 0 && got != -EAGAIN)
			return total ?: got;
		if (READ_ONCE(s->shut))
			return total;
		if (!timeout)
			return total ?: -EAGAIN;
		/* To look again pays only when there is more. */
		wanted = flags & MSG_PEEK ?
				 max_t(long, min_t(size_t, target, SSA_LOW_WATER), total + 1) :
				 1;
		timeout = wait_event_interruptible_timeout(s->data->wq.wait,
							   ssa_may_receive(s, wanted), timeout);
		if (timeout < 0)
			return total ?: sock_intr_errno(sock_rcvtimeo(sk, 0));
	}
}

int ssa_recvmsg(struct socket *sock, struct msghdr *msg, size_t len, int flags)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	void *name = msg->msg_name;
	int got;

	if (flags & MSG_OOB)
		return -EOPNOTSUPP;
	if (flags & MSG_ERRQUEUE)
		return -EAGAIN;
	got = ssa_ready(sock, flags);
	if (got)
		return got;
	if (flags & MSG_TRUNC)		/* as TCP: thrown away */
		iov_iter_discard(&msg->msg_iter, SSA_DESTINATION, len);
	msg->msg_name = NULL;
	flags &= ~MSG_TRUNC;
	if (s->ktls) {
		if (READ_ONCE(s->shut))
			flags |= MSG_DONTWAIT;	/* what has come is still there, and then the end */
		got = ssa_ktls_recvmsg(s, msg, len, flags);
		if (got == -EAGAIN && READ_ONCE(s->shut))
			got = 0;
	} else {
		got = ssa_relay_recvmsg(sk, msg, len, flags);
	}
	/* It is told now: SO_ERROR has nothing to add. */
	if (got < 0 && got == -READ_ONCE(sk->sk_err))
		sock_error(sk);
	msg->msg_name = name;
	msg->msg_namelen = 0;
	msg->msg_flags &= ~(MSG_EOR | MSG_TRUNC);
	return got;
}

/*
 * As TCP: whoever waits in accept is woken, there is nothing left to accept, and listen may be
 * called again.
 */
static void ssa_stop_listening(struct sock *sk, struct list_head *queue)
{
	struct ssa_sock *s = ssa_sk(sk);

	sk->sk_state = TCP_CLOSE;
	ssa_set_state(s, SSA_NEW);
	list_splice_init(&s->queue, queue);
	s->queued = 0;
	kernel_sock_shutdown(s->inner, SHUT_RDWR);
	sk->sk_state_change(sk);
}

/* Without the lock of the TLS socket: kTLS may have to wait. */
static int ssa_shutdown_data(struct ssa_sock *s, int how)
{
	struct sock *sk = (struct sock *)s;
	int error = 0;

	if (how != SHUT_WR)
		WRITE_ONCE(s->shut, true);
	if (s->ktls)
		error = ssa_ktls_shutdown(s, how);
	else if (how != SHUT_RD)
		error = READ_ONCE(s->data->ops)->shutdown(s->data, SHUT_WR);
	if (how != SHUT_WR) {
		/*
		 * Not told to the other end of a pair: the daemon would take it for the program's
		 * end.
		 */
		if (!s->ktls)
			wake_up_interruptible_all(&s->data->wq.wait);
		sk->sk_state_change(sk);
	}
	return error;
}

int ssa_shutdown(struct socket *sock, int how)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	int error = -ENOTCONN;
	LIST_HEAD(queue);

	if (how < SHUT_RD || how > SHUT_RDWR)
		return -EINVAL;
	if (ssa_state(s) == SSA_ESTABLISHED)
		return ssa_shutdown_data(s, how);
	lock_sock(sk);
	if (s->state == SSA_LISTEN) {
		error = 0;
		if (how != SHUT_WR)
			ssa_stop_listening(sk, &queue);
	}
	release_sock(sk);
	ssa_children_drop(&queue);
	return error;
}

/*
 * Of the requests of tcp(7), those that are about data; all others, such as those about interfaces,
 * are the inner socket's.
 */
int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	struct socket *inner;
	struct file *file;
	int result;

	if (ssa_state(s) == SSA_ESTABLISHED && s->ktls && cmd == SIOCINQ)
		return put_user(ssa_ktls_available(s), (int __user *)arg);
	if (ssa_state(s) == SSA_ESTABLISHED && (cmd == SIOCINQ || cmd == SIOCOUTQ))
		return READ_ONCE(s->data->ops)->ioctl(s->data, cmd, arg);
	file = ssa_hold_inner(s);
	inner = sock_from_file(file);
	result = READ_ONCE(inner->ops)->ioctl(inner, cmd, arg);
	fput(file);
	return result;
}
