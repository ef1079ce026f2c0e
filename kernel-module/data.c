// SPDX-License-Identifier: GPL-2.0-only
/*
 * Data: every call goes to the data socket, which is our end of the pair to the daemon's relay, or the TCP socket itself
 * where the daemon has installed kTLS on it.
 */
#include <linux/module.h>
#include <linux/sockios.h>
#include <linux/un.h>
#include <asm/ioctls.h>
#include <net/af_unix.h>
#include <net/tcp.h>
#include <net/tls.h>

#include "ssa.h"

/* RFC 8446 section 5.1 and section 6. */
#define SSA_RECORD_ALERT	21
#define SSA_RECORD_HANDSHAKE	22
#define SSA_RECORD_DATA		23
#define SSA_ALERT_WARNING	1
#define SSA_ALERT_CLOSE_NOTIFY	0
#define SSA_MESSAGE_TICKET	4
#define SSA_ALERT_SIZE		2

/* Bytes that surely fit into a pair, whatever the daemon's writes are cut into: each has some overhead there. */
#define SSA_LOW_WATER		65536

#define SSA_REFUSED_TO_SEND	(MSG_OOB | MSG_ZEROCOPY | MSG_FASTOPEN)

union ssa_record_type {
	struct cmsghdr header;
	u8 space[CMSG_SPACE(sizeof(u8))];
};

/* Whether the ULP of a TCP socket is TLS, in both directions. */
bool ssa_has_ktls(struct sock *sk)
{
	const struct tcp_ulp_ops *ulp;
	struct tls_context *context;
	bool has = false;

	lock_sock(sk);
	ulp = inet_csk(sk)->icsk_ulp_ops;
	if (ulp && !strcmp(ulp->name, "tls")) {
		context = tls_get_ctx(sk);
		has = context && context->tx_conf != TLS_BASE && context->rx_conf != TLS_BASE;
	}
	release_sock(sk);
	return has;
}

/* How many bytes make a socket readable: SO_RCVLOWAT, but never more than surely fit into the pair. */
static int ssa_low_water(const struct sock *sk)
{
	return clamp(READ_ONCE(sk->sk_rcvlowat), 1, SSA_LOW_WATER);
}

/* Poll the pair as TCP would be: with SO_RCVLOWAT, and with a mark where somebody waits for room. */
static __poll_t ssa_poll_data(struct file *file, struct ssa_sock *s)
{
	const struct proto_ops *ops = READ_ONCE(s->data->ops);
	struct sock *data = s->data->sk;
	int low = ssa_low_water((struct sock *)s);
	__poll_t mask;

	mask = ops->poll(file, s->data, NULL);
	if (!(mask & EPOLLOUT)) {
		set_bit(SSA_NOSPACE, &s->flags);
		smp_mb__after_atomic();
		mask = ops->poll(file, s->data, NULL);
	}
	if (low > 1 && !s->ktls && !(mask & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) && unix_inq_len(data) < low)
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

int ssa_sendmsg(struct socket *sock, struct msghdr *msg, size_t len)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	int error;

	if (msg->msg_flags & SSA_REFUSED_TO_SEND) {
		ssa_complain(s, "MSG_OOB, MSG_ZEROCOPY and MSG_FASTOPEN are not available for TLS");
		return -EOPNOTSUPP;
	}
	error = ssa_ready(sock, msg->msg_flags);
	if (error == -ENOTCONN) {
		error = -EPIPE;		/* as TCP */
		if (!(msg->msg_flags & MSG_NOSIGNAL))
			send_sig(SIGPIPE, current, 0);
	}
	if (error)
		return error;
	s->data->sk->sk_sndtimeo = sk->sk_sndtimeo;
	/* No address, no descriptors for the daemon, no record types for kTLS. */
	msg->msg_name = NULL;
	msg->msg_namelen = 0;
	msg->msg_control = NULL;
	msg->msg_controllen = 0;
	error = READ_ONCE(s->data->ops)->sendmsg(s->data, msg, len);
	if (error == -EAGAIN || (error >= 0 && error < len))
		ssa_want_space(s);
	return error;
}

#if !SSA_SINCE(6, 5)
ssize_t ssa_sendpage(struct socket *sock, struct page *page, int offset, size_t size, int flags)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	int error = ssa_ready(sock, flags);

	if (error)
		return error;
	error = READ_ONCE(s->data->ops)->sendpage(s->data, page, offset, size, flags);
	if (error == -EAGAIN || (error >= 0 && error < size))
		ssa_want_space(s);
	return error;
}
#endif

static u8 ssa_type_of(const union ssa_record_type *type)
{
	return type->header.cmsg_len ? *(u8 *)CMSG_DATA(&type->header) : SSA_RECORD_DATA;
}

/* What a record that is no data means: 1: nothing, 0: end of stream, or an error. */
static int ssa_control(struct ssa_sock *s, u8 type, const u8 *data, int size)
{
	if (type == SSA_RECORD_ALERT && size >= SSA_ALERT_SIZE) {
		if (data[1] != SSA_ALERT_CLOSE_NOTIFY)
			return -ECONNRESET;
		WRITE_ONCE(s->eof, true);
		return 0;
	}
	if (type == SSA_RECORD_HANDSHAKE && size && data[0] == SSA_MESSAGE_TICKET)
		return 1;
	return -EIO;	/* a KeyUpdate that this kernel cannot do, or nothing that belongs here */
}

/* Receive into the kernel's own memory, with room for the record's type: without it kTLS answers EIO. */
static int ssa_receive(struct ssa_sock *s, void *data, int size, int flags, u8 *type, bool *whole)
{
	union ssa_record_type control = {};
	struct msghdr msg = { .msg_control = &control, .msg_controllen = sizeof(control) };
	struct kvec vec = { data, size };
	int got = kernel_recvmsg(s->inner, &msg, &vec, 1, size, flags);

	*type = ssa_type_of(&control);
	*whole = msg.msg_flags & MSG_EOR;
	return got;
}

/* Take the rest of a control record, of which the first bytes are in a buffer already. */
static int ssa_drain(struct ssa_sock *s, u8 type, u8 *buffer, int have, int room, bool whole)
{
	int got;

	while (!whole) {
		if (have == room)
			have = SSA_ALERT_SIZE;	/* only its beginning says what it is */
		got = ssa_receive(s, buffer + have, room - have, MSG_DONTWAIT, &type, &whole);
		if (got <= 0)
			return got ?: -EIO;
		have += got;
	}
	return ssa_control(s, type, buffer, have);
}

/*
 * Receive from a kTLS socket.  Only data reaches the program; of the other records the end of stream is one, tickets are
 * dropped, and anything else is an error.
 */
static int ssa_ktls_recvmsg(struct ssa_sock *s, struct msghdr *msg, size_t len, int flags)
{
	union ssa_record_type control;
	struct msghdr inner;
	u8 buffer[256];
	bool whole;
	u8 type;
	int got, have;

	flags &= ~MSG_CMSG_COMPAT;	/* the control buffer is ours, not a 32-bit program's */
	for (;;) {
		struct iov_iter start = msg->msg_iter;

		if (READ_ONCE(s->eof))
			return 0;
#if !SSA_SINCE(6, 5)
		if (iov_iter_is_pipe(&start)) {		/* splice: it cannot be read back, so look first */
			got = ssa_receive(s, buffer, 1, (flags & MSG_DONTWAIT) | MSG_PEEK, &type, &whole);
			if (got <= 0)
				return got ?: -ECONNRESET;
			if (type != SSA_RECORD_DATA) {
				got = ssa_drain(s, type, buffer, 0, sizeof(buffer), false);
				if (got > 0)
					continue;
				return got;
			}
		}
#endif
		memset(&control, 0, sizeof(control));
		inner = *msg;
		inner.msg_name = NULL;
		inner.msg_control = &control;
		inner.msg_controllen = sizeof(control);
		inner.msg_control_is_user = false;
		inner.msg_flags = flags;
		got = READ_ONCE(s->inner->ops)->recvmsg(s->inner, &inner, len, flags);
		msg->msg_iter = inner.msg_iter;
		if (!got && len)
			return READ_ONCE(s->shut) ? 0 : -ECONNRESET;	/* TCP ended without close_notify */
		if (got < 0)
			return got;
		type = ssa_type_of(&control);
		if (type == SSA_RECORD_DATA)
			return got;
		/* A control record is in the program's buffer: read it back from there. */
		have = 0;
		if (!(flags & MSG_PEEK)) {
			have = min_t(int, got, sizeof(buffer));
			start.data_source = true;
			if (copy_from_iter(buffer, have, &start) != have)
				return -EFAULT;
			iov_iter_revert(&start, have);
			start.data_source = false;
		}
		msg->msg_iter = start;
		whole = !(flags & MSG_PEEK) && (inner.msg_flags & MSG_EOR);
		got = ssa_drain(s, type, buffer, have, sizeof(buffer), whole);
		if (got <= 0)
			return got;
	}
}

/* Whether a receive from the pair may go on: there are so many bytes, or something has ended. */
static bool ssa_may_receive(const struct ssa_sock *s, long wanted)
{
	struct sock *data = s->data->sk;

	return READ_ONCE(s->shut) || READ_ONCE(data->sk_err) || (READ_ONCE(data->sk_shutdown) & RCV_SHUTDOWN) ||
	       unix_inq_len(data) >= wanted;
}

/*
 * Receive from the pair.  It waits here, not in AF_UNIX, which knows neither the low-water mark with MSG_PEEK, nor the
 * program's own shutdown, of which the daemon's end must not hear.
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
		got = READ_ONCE(s->data->ops)->recvmsg(s->data, msg, len - total, flags | MSG_DONTWAIT);
		if (got > 0)
			total += got;
		if (!len || total >= target)
			return total;
		if (!got) {
			/* An end counts only where the daemon vouches for it: a dead one's end looks the same. */
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
		wanted = flags & MSG_PEEK ? max_t(long, min_t(size_t, target, SSA_LOW_WATER), total + 1) : 1;
		timeout = wait_event_interruptible_timeout(s->data->wq.wait, ssa_may_receive(s, wanted), timeout);
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
	if (s->ktls) {
		s->data->sk->sk_rcvtimeo = sk->sk_rcvtimeo;
		s->data->sk->sk_rcvlowat = sk->sk_rcvlowat;
		if (READ_ONCE(s->shut))
			flags |= MSG_DONTWAIT;	/* what has come is still there, and then the end */
		got = ssa_ktls_recvmsg(s, msg, len, flags);
		if (got == -EAGAIN && READ_ONCE(s->shut))
			got = 0;
	} else {
		got = ssa_relay_recvmsg(sk, msg, len, flags & ~MSG_TRUNC);
	}
	/* It is told now: SO_ERROR has nothing to add. */
	if (got < 0 && got == -READ_ONCE(sk->sk_err))
		sock_error(sk);
	msg->msg_name = name;
	msg->msg_namelen = 0;
	msg->msg_flags &= ~(MSG_EOR | MSG_TRUNC);
	return got;
}

/* Send close_notify over kTLS, with room for it even where the send buffer is full. */
void ssa_close_notify(struct ssa_sock *s)
{
	static const u8 alert[SSA_ALERT_SIZE] = { SSA_ALERT_WARNING, SSA_ALERT_CLOSE_NOTIFY };
	struct kvec vec = { (void *)alert, sizeof(alert) };
	union ssa_record_type control = {};
	struct msghdr msg = {
		.msg_control = &control,
		.msg_controllen = sizeof(control),
		.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL,
	};
	struct sock *sk = s->inner->sk;

	control.header.cmsg_level = SOL_TLS;
	control.header.cmsg_type = TLS_SET_RECORD_TYPE;
	control.header.cmsg_len = CMSG_LEN(sizeof(u8));
	*(u8 *)CMSG_DATA(&control.header) = SSA_RECORD_ALERT;
	lock_sock(sk);
	sk->sk_sndbuf = max(sk->sk_sndbuf, sk->sk_wmem_queued + 8192);
	release_sock(sk);
	kernel_sendmsg(s->inner, &msg, &vec, 1, sizeof(alert));
}

/* As TCP: whoever waits in accept is woken, there is nothing left to accept, and listen may be called again. */
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

/* End what a program receives.  Not told to the other end of a pair: the daemon would take it for the program's end. */
static void ssa_end_receiving(struct ssa_sock *s)
{
	WRITE_ONCE(s->shut, true);
	if (s->ktls)
		READ_ONCE(s->inner->ops)->shutdown(s->inner, SHUT_RD);
	else
		wake_up_interruptible_all(&s->data->wq.wait);
	((struct sock *)s)->sk_state_change((struct sock *)s);
}

int ssa_shutdown(struct socket *sock, int how)
{
	struct sock *sk = sock->sk;
	struct ssa_sock *s = ssa_sk(sk);
	int error = -ENOTCONN;
	LIST_HEAD(queue);

	if (how != SHUT_RD && how != SHUT_WR && how != SHUT_RDWR)
		return -EINVAL;
	lock_sock(sk);
	switch (s->state) {
	case SSA_ESTABLISHED:
		if (s->ktls && how != SHUT_RD)
			ssa_close_notify(s);
		error = 0;
		if (how != SHUT_WR)
			ssa_end_receiving(s);
		if (how != SHUT_RD)
			error = READ_ONCE(s->data->ops)->shutdown(s->data, SHUT_WR);
		break;
	case SSA_LISTEN:
		error = 0;
		if (how != SHUT_WR)
			ssa_stop_listening(sk, &queue);
		break;
	default:
		break;
	}
	release_sock(sk);
	ssa_children_drop(&queue);
	return error;
}

/* Of the requests of tcp(7), those that are about data; all others, such as those about interfaces, are the inner socket's. */
int ssa_ioctl(struct socket *sock, unsigned int cmd, unsigned long arg)
{
	struct ssa_sock *s = ssa_sk(sock->sk);
	struct socket *to = s->inner;

	switch (cmd) {
	case SIOCINQ:
	case SIOCOUTQ:
		if (ssa_state(s) == SSA_ESTABLISHED)
			to = s->data;
	}
	return READ_ONCE(to->ops)->ioctl(to, cmd, arg);
}
