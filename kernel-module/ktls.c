// SPDX-License-Identifier: GPL-2.0-only
/*
 * kTLS: the daemon has installed keys on the inner TCP socket, which then is the data socket too.
 * Here are the records that are no data.
 *
 * One at a time receives, since a control record may come in pieces, and what comes next must not
 * go to somebody else.
 */
#include <linux/module.h>
#include <net/tcp.h>
#include <net/tls.h>

#include "ssa.h"

/* RFC 8446 section 5.1, section 6 and section 4. */
#define SSA_RECORD_ALERT	21
#define SSA_RECORD_HANDSHAKE	22
#define SSA_RECORD_DATA		23
#define SSA_ALERT_WARNING	1
#define SSA_ALERT_CLOSE_NOTIFY	0
#define SSA_ALERT_USER_CANCELED	90
#define SSA_ALERT_SIZE		2
#define SSA_MESSAGE_TICKET	4
#define SSA_MESSAGE_KEY_UPDATE	24
#define SSA_MESSAGE_HEADER	4

/* How many pieces of control records are dropped before signals and the time are looked at. */
#define SSA_MOST_DROPPED	64

/* For two records of the greatest length, and what the kernel adds. */
#define SSA_ROOM_FOR_END	65536

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

/* The connection can carry nothing more: neither side may take that for its end. */
static int ssa_ktls_fail(struct ssa_sock *s, int error)
{
	WRITE_ONCE(s->fault, error);
	sock_error(s->inner->sk);	/* kTLS has left its own there */
	kernel_sock_shutdown(s->inner, SHUT_RDWR);
	return error;
}

/* What a call on the inner socket has returned, as the program gets it. */
int ssa_ktls_result(struct ssa_sock *s, int result)
{
	switch (result) {
	case -EBADMSG:		/* a record that does not decrypt */
	case -EMSGSIZE:		/* what is no record */
	case -EINVAL:
		return ssa_ktls_fail(s, -ECONNRESET);
	default:
		return result;
	}
}

static int ssa_alerts(struct ssa_sock *s, const u8 *data, int size)
{
	for (; size; size--, data++) {
		s->alert_half = !s->alert_half;
		/* which announces close_notify */
		if (s->alert_half || *data == SSA_ALERT_USER_CANCELED)
			continue;
		return *data == SSA_ALERT_CLOSE_NOTIFY ? 0 : -ECONNRESET;
	}
	return 1;
}

/* Handshake messages, which may share records and be spread over several. */
static int ssa_messages(struct ssa_sock *s, const u8 *data, int size)
{
	while (size) {
		int part = min_t(unsigned int, size, s->message_left);

		if (!part) {
			part = 1;
			s->message = s->message << 8 | *data;
			if (!s->message_have++) {
				if (*data == SSA_MESSAGE_KEY_UPDATE)
					return -EIO;	/* the kernel does not get the next key */
				if (*data != SSA_MESSAGE_TICKET)
					return -ECONNRESET;
			} else if (s->message_have == SSA_MESSAGE_HEADER) {
				s->message_have = 0;
				s->message_left = s->message & 0xffffff;
			}
		} else {
			s->message_left -= part;
		}
		data += part;
		size -= part;
	}
	return 1;
}

/* What a control record or a piece of one means: 1: nothing, 0: end of stream, or an error. */
static int ssa_control(struct ssa_sock *s, u8 type, const u8 *data, int size)
{
	int result = -ECONNRESET;

	if (size && type == SSA_RECORD_ALERT)
		result = ssa_alerts(s, data, size);
	else if (size && type == SSA_RECORD_HANDSHAKE)
		result = ssa_messages(s, data, size);
	if (result < 0)
		return ssa_ktls_fail(s, result);
	if (!result) {
		WRITE_ONCE(s->ended, true);
		kernel_sock_shutdown(s->inner, SHUT_RD);	/* poll tells */
	}
	return result;
}

static u8 ssa_type_of(const union ssa_record_type *type)
{
	return type->header.cmsg_len ? *(u8 *)CMSG_DATA(&type->header) : SSA_RECORD_DATA;
}

/*
 * Receive into the kernel's own memory, with room for the record's type: without it kTLS answers
 * EIO.
 */
static int ssa_receive(struct ssa_sock *s, void *data, int size, int flags, u8 *type)
{
	union ssa_record_type control = {};
	struct msghdr msg = { .msg_control = &control, .msg_controllen = sizeof(control) };
	struct kvec vec = { data, size };
	int got = kernel_recvmsg(s->inner, &msg, &vec, 1, size, flags);

	*type = ssa_type_of(&control);
	return got;
}

/*
 * Drop the control records that come next.  1: data may follow, or nothing; 0: end of stream; or an
 * error.
 */
static int ssa_ktls_drop(struct ssa_sock *s)
{
	int got, result, dropped;
	u8 buffer[256];
	u8 type;

	for (dropped = 0; dropped < SSA_MOST_DROPPED; dropped++) {
		/* Look first: data must stay where it is. */
		got = ssa_receive(s, buffer, 1, MSG_DONTWAIT | MSG_PEEK, &type);
		if (got < 0 && got != -EAGAIN)
			return ssa_ktls_result(s, got);
		if (got < 0 || type == SSA_RECORD_DATA) {
			if (s->alert_half)	/* alerts are not spread over records */
				return ssa_ktls_fail(s, -ECONNRESET);
			return 1;
		}
		if (got)
			got = ssa_receive(s, buffer, sizeof(buffer), MSG_DONTWAIT, &type);
		if (got < 0)
			return ssa_ktls_result(s, got);
		result = ssa_control(s, type, buffer, got);
		if (result <= 0)
			return result;
	}
	return 1;
}

/*
 * A control record, or its beginning, has come into the program's buffer: read it back from there.
 */
static int ssa_ktls_read_back(struct ssa_sock *s, u8 type, struct iov_iter start, int size)
{
	u8 buffer[256];
	int result = 1;

	start.data_source = true;
	do {
		int part = min_t(int, size, sizeof(buffer));

		if (copy_from_iter(buffer, part, &start) != part)
			return ssa_ktls_fail(s, -EFAULT);
		result = ssa_control(s, type, buffer, part);
		size -= part;
	} while (size && result > 0);
	return result;
}

/*
 * Receive once: the size of data, 0: end of stream, or an error; or try again, where records were
 * dropped.
 */
static int ssa_ktls_receive(struct ssa_sock *s, struct msghdr *msg, size_t len, int flags,
			    bool *again)
{
	struct iov_iter start = msg->msg_iter;
	union ssa_record_type control = {};
	struct msghdr inner = *msg;
	int got;
	u8 type;

	if (!ssa_can_read_back(&start)) {	/* so look first */
		u8 byte;

		got = ssa_receive(s, &byte, sizeof(byte), flags | MSG_PEEK, &type);
		if (got < 0)
			return ssa_ktls_result(s, got);
		if (type != SSA_RECORD_DATA) {
			got = ssa_ktls_drop(s);
			*again = got > 0;
			return got;
		}
	}
	inner.msg_name = NULL;
	inner.msg_control = &control;
	inner.msg_controllen = sizeof(control);
	inner.msg_control_is_user = false;
	inner.msg_flags = flags;
	got = READ_ONCE(s->inner->ops)->recvmsg(s->inner, &inner, len, flags);
	type = ssa_type_of(&control);
	if (got == -EPIPE)		/* of what kTLS could not send */
		got = -ECONNRESET;
	if (got < 0)
		return ssa_ktls_result(s, got);
	if (type == SSA_RECORD_DATA) {
		msg->msg_iter = inner.msg_iter;
		if (got || !len || READ_ONCE(s->eof) || READ_ONCE(s->shut))
			return got;
		return -ECONNRESET;	/* TCP ended without close_notify */
	}
	if (!(flags & MSG_PEEK)) {
		got = ssa_ktls_read_back(s, type, start, got);
		if (got <= 0)
			return got;
	}
	got = ssa_ktls_drop(s);
	*again = got > 0;
	return got;
}

static int ssa_ktls_enter(struct ssa_sock *s, long timeout)
{
	long left;

	if (!test_and_set_bit_lock(0, &s->receiving))
		return 0;
	if (!timeout)
		return -EAGAIN;
	left = wait_event_interruptible_timeout(s->receivers,
						!test_and_set_bit_lock(0, &s->receiving), timeout);
	if (left < 0)
		return sock_intr_errno(timeout);
	return left ? 0 : -EAGAIN;
}

static void ssa_ktls_leave(struct ssa_sock *s)
{
	clear_bit_unlock(0, &s->receiving);
	wake_up_all(&s->receivers);
}

/*
 * Receive from a kTLS socket.  Only data reaches the program; of the other records the end of
 * stream is one, tickets are dropped, and anything else is an error.
 */
int ssa_ktls_recvmsg(struct ssa_sock *s, struct msghdr *msg, size_t len, int flags)
{
	struct sock *sk = (struct sock *)s, *tcp = s->inner->sk;
	long timeout = sock_rcvtimeo(sk, flags & MSG_DONTWAIT);
	int target = sock_rcvlowat(sk, flags & MSG_WAITALL, len);
	unsigned long started = jiffies;
	int copied = 0, got;

	flags &= ~MSG_CMSG_COMPAT;	/* the control buffer is ours, not a 32-bit program's */
	got = ssa_ktls_enter(s, timeout);
	if (got)
		return got;
	for (;;) {
		long left = timeout;
		bool again = false;
		int wait = flags;

		got = READ_ONCE(s->fault);
		if (got || READ_ONCE(s->ended))
			break;
		if (timeout != MAX_SCHEDULE_TIMEOUT)
			left = max(timeout - (long)(jiffies - started), 0L);
		if (!left)
			wait |= MSG_DONTWAIT;
		WRITE_ONCE(tcp->sk_rcvtimeo, left);
		WRITE_ONCE(tcp->sk_rcvlowat, min(READ_ONCE(sk->sk_rcvlowat), target - copied));
		got = ssa_ktls_receive(s, msg, len - copied, wait, &again);
		if (!again) {
			if (got <= 0)
				break;
			copied += got;
			if (copied >= target || flags & MSG_PEEK)
				break;
		}
		if (signal_pending(current)) {
			got = sock_intr_errno(timeout);
			break;
		}
	}
	WRITE_ONCE(tcp->sk_rcvlowat, READ_ONCE(sk->sk_rcvlowat));
	ssa_ktls_leave(s);
	return copied ?: got;
}

/* Where encryption is asynchronous, kTLS takes data although TCP will not. */
int ssa_ktls_may_send(struct ssa_sock *s, int flags)
{
	struct sock *tcp = s->inner->sk;

	if (!READ_ONCE(tcp->sk_err) && !(READ_ONCE(tcp->sk_shutdown) & SEND_SHUTDOWN))
		return 0;
	return ssa_ktls_result(s, sk_stream_error(tcp, flags, -EPIPE));
}

/*
 * kTLS refuses to send with flags that TCP passes over, and lets a record that more is announced
 * for wait for ever, where TCP waits for a moment.
 */
void ssa_ktls_flags(struct msghdr *msg)
{
	msg->msg_flags &= MSG_DONTWAIT | MSG_NOSIGNAL | SSA_SPLICE_FLAGS(msg->msg_flags);
}

/* How much data can be received at once, as far as it has come: what TCP counts is ciphertext. */
int ssa_ktls_available(struct ssa_sock *s)
{
	/* As much as the receive buffer may hold: looking takes records out of it. */
	int size = READ_ONCE(s->inner->sk->sk_rcvbuf);
	union ssa_record_type control = {};
	struct msghdr msg = { .msg_control = &control, .msg_controllen = sizeof(control) };
	int got = 0;

	if (ssa_ktls_enter(s, 0))
		return 0;	/* somebody waits for data */
	if (!READ_ONCE(s->fault) && !READ_ONCE(s->ended) && ssa_ktls_drop(s) > 0) {
		iov_iter_discard(&msg.msg_iter, READ, size);
		got = READ_ONCE(s->inner->ops)
			      ->recvmsg(s->inner, &msg, size, MSG_DONTWAIT | MSG_PEEK);
		if (ssa_type_of(&control) != SSA_RECORD_DATA)
			got = 0;
	}
	ssa_ktls_leave(s);
	return max(got, 0);
}

/*
 * Send close_notify over kTLS, with room for it, and for a record that waits, even where the send
 * buffer is full. Waits for a program that sends at this moment; a signal ends that.
 */
static int ssa_close_notify(struct ssa_sock *s)
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
	sk->sk_sndbuf = max(sk->sk_sndbuf, sk->sk_wmem_queued + SSA_ROOM_FOR_END);
	release_sock(sk);
	return kernel_sendmsg(s->inner, &msg, &vec, 1, sizeof(alert));
}

/*
 * As TCP, but for close_notify before FIN.  Without the lock of the TLS socket: it may have to
 * wait.
 */
int ssa_ktls_shutdown(struct ssa_sock *s, int how)
{
	if (how != SHUT_RD && ssa_close_notify(s) == -EINTR)
		return -ERESTARTSYS;
	return READ_ONCE(s->inner->ops)->shutdown(s->inner, how);
}

/* The program has closed; the daemon may hold a descriptor for longer. */
void ssa_ktls_close(struct ssa_sock *s)
{
	/*
	 * For unread data TCP sends a reset and throws away what it has not sent; tickets are none.
	 */
	if (!READ_ONCE(s->fault) && !READ_ONCE(s->ended))
		ssa_ktls_drop(s);
	ssa_close_notify(s);
	kernel_sock_shutdown(s->inner, SHUT_WR);
}
