// SPDX-License-Identifier: GPL-2.0-only
/*
 * kTLS: the daemon has installed keys on the inner TCP socket, which then is the data socket too.  Here are the records that
 * are no data.
 */
#include <linux/module.h>
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
int ssa_ktls_recvmsg(struct ssa_sock *s, struct msghdr *msg, size_t len, int flags)
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
			return -ECONNRESET;	/* TCP ended without close_notify */
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
